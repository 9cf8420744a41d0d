"""`attnzoo draw`: what queries of a trained model attend to, as a figure or an interactive page."""

import argparse
from pathlib import Path

from attnzoo.errors import UserError, as_options, plural
from attnzoo.inference import options
from attnzoo.paths import argument_path, output_file, real_path, user_path

EXAMPLES = """examples:
  attnzoo draw runs/ablate_points/points=4-seed=1000 a.jpg -o a.png
  attnzoo draw runs/ablate_points/points=4-seed=1000 a.jpg -o a.pdf --best 2 --layer decoder --compare initial
  attnzoo draw dat_tiny.pth cat.jpg -o cat.png --xy 120,80 --layer stage3.1 --bias
  attnzoo draw r50_deformable_detr-checkpoint.pth a.jpg b.jpg -o page.html --html
"""
OPTIONS = {name: f"--{name}" for name in ("query", "xy", "best", "layer", "head", "compare", "bias")} | {"output": "-o"}


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Declare the arguments of `attnzoo draw`; returns the parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    options.add_model_arguments(parser)
    parser.add_argument(
        "images",
        metavar="IMAGE|FOLDER",
        nargs="+",
        type=argument_path,
        help="images, or folders with images at any depth",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=argument_path,
        required=True,
        help="a .png, .svg or .pdf, or a .html page",
    )
    parser.add_argument("--html", action="store_true", help="write an interactive page, one file that works offline")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--query", metavar="N", type=int, help="the object query or token of this number")
    which.add_argument("--xy", metavar="X,Y", type=_point, help="what is at this pixel of the image")
    which.add_argument("--best", metavar="N", type=int, help="object queries with the highest scores (default: 4)")
    parser.add_argument(
        "--layer", metavar="NAME", help="such as decoder.1, stage3.0, or encoder for all of its layers (default: last)"
    )
    parser.add_argument("--head", metavar="N", type=int, help="one head (default: all)")
    parser.add_argument(
        "--compare", metavar="INIT", help="draw beside it the 'initial' offsets, or another WEIGHTS|RUN of this model"
    )
    parser.add_argument("--bias", action="store_true", help="colour the keys of a deformed grid by position bias")
    parser.add_argument("--zoom", action="store_true", help="show the surroundings of the query")
    return parser


def main(args: argparse.Namespace) -> int:
    """Run `attnzoo draw`; returns the exit code."""
    if args.html and args.output.suffix.lower() != ".html":
        raise UserError(f"-o {args.output}: expected a name that ends in .html with --html")
    from attnzoo.inference.drawing import FORMATS, INITIAL, draw_attentions
    from attnzoo.inference.image_files import find_images

    images = find_images(args.images, exclude=args.output)
    with as_options(**OPTIONS):
        output_file(args.output, FORMATS)
        if real_path(args.output) in {real_path(image.path) for image in images}:
            raise UserError(f"output = {args.output}: one of the images; choose another file", key="output")
        model = options.load(args)
        other = args.compare
        if other is not None and other != INITIAL:
            other = options.load_weights(args, other)
        errors: list[UserError] = []
        draw_attentions(
            model,
            [image.path for image in images],
            args.output,
            query=args.query,
            xy=args.xy,
            best=args.best,
            layer=args.layer,
            head=args.head,
            compare=other,
            bias=args.bias,
            zoom=args.zoom,
            names=(_name(args.weights), _name(args.compare or "other")),
            on_error=errors.append,
        )
    options.print_skipped(errors, len(images))
    if len(errors) == len(images):
        raise UserError("none of the images can be used; nothing was written")
    print(f"{plural(len(images) - len(errors), 'image')}: {args.output}")
    return 0


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected X,Y in pixels, such as 120,80, got {text!r}") from None
    return x, y


def _name(weights: str | Path) -> str:
    """A short name of weights: of a run with its experiment, of a checkpoint with its run."""
    path = user_path(weights)
    if path.parent.name == "checkpoints":
        return f"{path.parent.parent.name}, {path.name.partition('.')[0]}"
    return f"{path.parent.name}/{path.name}" if path.is_dir() and path.parent.name else path.stem
