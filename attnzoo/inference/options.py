"""Arguments of the commands that take a trained model."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnzoo.errors import UserError, as_options, one_line, plural
from attnzoo.paths import argument_path

if TYPE_CHECKING:
    from attnzoo.inference.loaded import LoadedModel

SHOWN = 10  # skipped images that are named
MODEL = {name: f"--{name}" for name in ("preset", "source", "device")}


def add_model_arguments(parser: argparse.ArgumentParser, overrides: bool = True) -> None:
    """WEIGHTS|RUN, --preset, --source, --device and, with `overrides`, --set, which `load` reads."""
    parser.add_argument(
        "weights",
        metavar="WEIGHTS|RUN",
        type=argument_path,
        help="a run folder, a checkpoint, a file of published weights, or a Hugging Face folder",
    )
    parser.add_argument("--preset", metavar="NAME", help="the model of the weights (default: told from their names)")
    parser.add_argument("--source", metavar="NAME", default="auto", help="the project of the weights (default: auto)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    if overrides:
        parser.add_argument(
            "--set",
            metavar="key=value",
            dest="overrides",
            action="append",
            default=[],
            help="a setting, such as model.queries=100; may be repeated",
        )


def load(args: argparse.Namespace) -> "LoadedModel":
    """The model of the arguments. Raises UserError as `load_model` does."""
    return load_weights(args, args.weights, args.overrides)


def load_weights(args: argparse.Namespace, weights: str | Path, overrides: Sequence[str] = ()) -> "LoadedModel":
    """The model of these weights, with the other arguments. Raises UserError as `load_model` does."""
    from attnzoo.inference.load import load_model

    with as_options(**MODEL):
        return load_model(weights, preset=args.preset, source=args.source, overrides=overrides, device=args.device)


def print_skipped(errors: Sequence[UserError], total: int) -> None:
    """Warn of images that were skipped, of `total`: the first by name, and their number."""
    for error in errors[:SHOWN]:
        print(f"skipped: {one_line(str(error))}", file=sys.stderr)
    if errors:
        print(f"skipped {len(errors)} of {plural(total, 'image')}", file=sys.stderr)
