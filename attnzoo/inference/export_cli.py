"""`attnzoo export`: a whole model as ONNX, or as a program of torch.export."""

import argparse
import logging
import sys
from typing import TYPE_CHECKING, Any

from attnzoo.errors import ExitCode, as_options
from attnzoo.inference import options
from attnzoo.paths import argument_path

if TYPE_CHECKING:
    from attnzoo.inference.loaded import LoadedModel

EXAMPLES = """examples:
  attnzoo export runs/ablate_points/points=4-seed=1000 -o model.onnx
  attnzoo export r50_deformable_detr-checkpoint.pth -o model.onnx --sampling gather --postprocess
  attnzoo export runs/ablate_points/points=4-seed=1000 -o model.pt2
"""
OPTIONS = {"file": "-o", "opset": "--opset", "sampling": "--sampling"}


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Declare the arguments of `attnzoo export`; returns the parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    options.add_model_arguments(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=argument_path, required=True, help="a .onnx or .pt2; its folder is made"
    )
    parser.add_argument(
        "--opset",
        metavar="18|20",
        type=int,
        help="version of ONNX's operators: 18 or 20 (default)",
    )
    parser.add_argument(
        "--sampling",
        choices=("grid_sample", "gather"),
        help="how features are sampled: by GridSample (default of ONNX), or by gathers, for TensorRT; "
        "default of .pt2: attnzoo's operators",
    )
    parser.add_argument(
        "--mask",
        action=argparse.BooleanOptionalAction,
        help="an input that says where images are padded (default: detectors have it, classifiers have not)",
    )
    parser.add_argument(
        "--postprocess", action="store_true", help="outputs are scores, labels and boxes in pixels, not logits"
    )
    return parser


def main(args: argparse.Namespace) -> int:
    """Run `attnzoo export`; returns the exit code: 1 if the file and PyTorch disagree."""
    from attnzoo.interop import onnx

    with as_options(**OPTIONS):
        onnx.check_options(args.output, args.opset)
    loaded = options.load(args)
    outputs: dict[str, Any] = {
        "mask": args.mask,
        "postprocess": args.postprocess,
        "max_detections": getattr(loaded.settings, "max_detections", 100),
    }
    for name in ("torch.onnx", "onnxscript"):  # what they skip is no concern of the user
        logging.getLogger(name).setLevel(logging.ERROR)
    file = onnx.export_model(
        loaded.model, args.output, opset=args.opset, sampling=args.sampling, metadata=_metadata(loaded), **outputs
    )
    print(f"{file}: {onnx.describe(loaded.model, **outputs)}")
    try:
        difference = onnx.largest_difference(file, loaded.model, **outputs)
    except ImportError:
        print("not compared with PyTorch: onnxruntime is not installed", file=sys.stderr)
        return ExitCode.OK
    print(f"largest difference from PyTorch: {difference:.1e}, on images of two sizes")
    if not difference <= onnx.TOLERANCE:
        print(f"the file and PyTorch disagree: at most {onnx.TOLERANCE:.0e} is expected", file=sys.stderr)
        return ExitCode.FAILED
    return ExitCode.OK


def _metadata(loaded: "LoadedModel") -> dict[str, Any]:
    """What a user of the file needs: class names, and how images are prepared."""
    from attnzoo.data.pixels import MEAN, STD

    return {
        "class_names": loaded.class_names,
        "mean": MEAN,
        "std": STD,
        "weights": loaded.weights.name,
    }
