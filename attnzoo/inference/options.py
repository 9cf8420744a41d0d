"""Arguments of the commands that take a trained model."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attnzoo.inference.loaded import LoadedModel


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """WEIGHTS|RUN, --preset, --source and --device, which `load` reads."""
    parser.add_argument(
        "weights",
        metavar="WEIGHTS|RUN",
        help="a run folder, a checkpoint, a file of published weights, or a Hugging Face folder",
    )
    parser.add_argument("--preset", metavar="NAME", help="the model of the weights (default: told from their names)")
    parser.add_argument("--source", metavar="NAME", default="auto", help="the project of the weights (default: auto)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)")


def load(args: argparse.Namespace, overrides: "Sequence[str]" = ()) -> "LoadedModel":
    """The model of the arguments; `overrides` as on the command line. Raises UserError as `load_model` does."""
    from attnzoo.inference.load import load_model

    return load_model(args.weights, preset=args.preset, source=args.source, overrides=overrides, device=args.device)
