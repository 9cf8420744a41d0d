"""`attnzoo predict`: objects or classes in images, as COCO JSON and annotated pictures."""

import argparse

from attnzoo.errors import UserError, as_options, plural, printable
from attnzoo.inference import options
from attnzoo.paths import argument_path

EXAMPLES = """examples:
  attnzoo predict runs/ablate_points/points=4-seed=1000 photos/ -o out --threshold 0.2
  attnzoo predict r50_deformable_detr-checkpoint.pth a.jpg b.jpg -o out --threshold 0.5 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Declare the arguments of `attnzoo predict`; returns the parser."""
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
        "-o", "--output", metavar="OUT", type=argument_path, required=True, help="a folder, made if needed"
    )
    parser.add_argument(
        "--threshold",
        metavar="SCORE",
        type=float,
        default=0.3,
        help="lowest score of a detection (default: 0.3)",
    )
    parser.add_argument("--json", action="store_true", help="write OUT/predictions.json alone")
    parser.add_argument("--draw", action="store_true", help="write annotated pictures alone")
    parser.add_argument("--batch-size", metavar="N", type=int, default=4, help="images of equal size at a time (4)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Run `attnzoo predict`; returns the exit code."""
    from attnzoo.inference.image_files import find_images
    from attnzoo.inference.predict import predict_files

    images = find_images(args.images, exclude=args.output)
    model = options.load(args)
    both = args.json == args.draw
    with as_options(folder="-o", threshold="--threshold", batch_size="--batch-size"):
        result = predict_files(
            model,
            images,
            args.output,
            threshold=args.threshold,
            batch_size=args.batch_size,
            json=args.json or both,
            draw=args.draw or both,
        )
    options.print_skipped(result.errors, len(images))
    if not result.written:
        raise UserError("none of the images can be used; nothing was written")
    print(printable(f"{plural(len(images) - len(result.errors), 'image')}: {result.summary}"))
    for path in result.written:
        print(path)
    return 0
