"""`attnzoo data` and `attnzoo new`."""

import argparse
import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from attnzoo.errors import UserError, as_options
from attnzoo.paths import argument_path, output_file, output_folder

if TYPE_CHECKING:
    from attnzoo.userdata.check import DataReport
    from attnzoo.userdata.content import Content


def add_data_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of `attnzoo data`."""
    parser.add_argument(
        "folder", metavar="FOLDER", type=argument_path, help="COCO format, class folders, YOLO or Pascal VOC"
    )
    parser.add_argument("--sheet", metavar="FILE.png", type=argument_path, help="write pictures with their boxes")
    parser.add_argument("--convert", metavar="OUT", type=argument_path, help="write it as COCO format or class folders")
    _add_val_fraction(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def add_new_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of `attnzoo new`."""
    parser.add_argument("name", metavar="NAME", help="of the experiment; writes NAME.yaml")
    parser.add_argument("--data", metavar="FOLDER", type=argument_path, required=True, help="the data set")
    parser.add_argument("--weights", metavar="WEIGHTS", help="a file, run folder or Hugging Face folder to start from")
    _add_val_fraction(parser)
    return parser


def _add_val_fraction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--val-fraction", metavar="F", type=_fraction, default=0.2, help="of a split that is made (default: 0.2)"
    )


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text}")
    return value


def data(args: argparse.Namespace) -> int:
    """Run `attnzoo data`; returns 1 if training would refuse the data set."""
    import json

    from attnzoo.userdata.convert import convert
    from attnzoo.userdata.read import read_folder
    from attnzoo.userdata.sheet import draw_sheet
    from attnzoo.userdata.text import report_text

    if args.sheet is not None:
        with as_options(sheet="--sheet"):
            output_file(args.sheet, (".png", ".svg", ".pdf"), "sheet")
    if args.convert is not None and args.convert.exists():
        raise UserError(f"--convert {args.convert}: exists already; name another folder, or remove it")
    if args.convert is not None:
        with as_options(convert="--convert"):
            output_folder(args.convert, "convert")
    content = read_folder(args.folder)
    report = _check(content)
    if args.json:
        print(json.dumps(asdict(report), indent=1))
    else:
        print(report_text(report))
    written = []
    if args.sheet is not None:
        sheet = draw_sheet(content)
        args.sheet.parent.mkdir(parents=True, exist_ok=True)
        sheet.savefig(args.sheet)
        written.append(args.sheet)
    if args.convert is not None:
        convert(content, args.convert, args.val_fraction)
        written.append(args.convert)
    if written and not args.json:
        print("", *(f"written: {path}" for path in written), sep="\n")
    return int(report.has_errors)


def new(args: argparse.Namespace) -> int:
    """Run `attnzoo new`."""
    from attnzoo.userdata.new import new_experiment
    from attnzoo.userdata.read import read_folder

    created = new_experiment(args.name, read_folder(args.data), args.weights, args.val_fraction)
    print(created.message)
    return 0


def _check(content: "Content") -> "DataReport":
    from rich.console import Console
    from rich.progress import Progress

    from attnzoo.userdata.check import check_content

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading images", total=sum(len(split.paths) for split in content.splits.values()))
        return check_content(content, lambda: progress.advance(task))
