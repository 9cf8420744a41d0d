"""`attnzoo cost`: what the models of an experiment, a run or a preset cost. Imports torch when it runs."""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from attnzoo.bench.cli import check_pixels
from attnzoo.errors import UserError, plural

if TYPE_CHECKING:
    from attnzoo.cost.subject import Size
    from attnzoo.cost.target import Target
    from attnzoo.rundir.costs import Costs


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the arguments of the command; returns the parser."""
    parser.add_argument(
        "target", metavar="EXPERIMENT|RUN|PRESET", help="an experiment file, a folder of runs, or a preset"
    )
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="changes to an experiment, such as model.heads=4"
    )
    parser.add_argument(
        "--at", metavar="HxW", nargs="+", default=[], help="image sizes (default: that of the data set)"
    )
    parser.add_argument("--by-module", action="store_true", help="also list the parts of the models")
    parser.add_argument("--baseline", metavar="VARIANT", help="the variant of ratios (default: that of the sweep)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="time for measuring at each size; 0: only count (default: 60)"
    )
    return parser


def main(args: argparse.Namespace) -> int:
    """Count and measure, and print tables; of a sweep, write costs.json in its folder. Returns the exit code.

    Raises UserError for invalid arguments, before anything is measured.
    """
    sizes = [_parse_size(text) for text in args.at]
    if not 0 <= args.seconds < float("inf"):
        raise UserError(f"--seconds {args.seconds:g}: must be 0 or more, and finite")
    from attnzoo.cost.target import find_target  # imports torch

    target = find_target(args.target, args.baseline, args.overrides)
    for size in sizes or (None,):
        costs = _measure(target, size, args.seconds)
        sweep = target.sweep if size is None and args.seconds else None
        path = None if sweep is None else _write(costs, sweep)  # first: nobody may read the output any more
        _print(target, costs, args.by_module)
        if path is not None:
            print(f"written: {path}")
    return 0


def _measure(target: "Target", size: "Size | None", seconds: float) -> "Costs":
    import torch

    from attnzoo.cost.measure import measure_costs
    from attnzoo.engine.distributed import pick_device

    device = pick_device(target.device, 0)
    if target.threads is not None:
        torch.set_num_threads(target.threads)
    subjects = {name: subject.at(size) if size else subject for name, subject in target.subjects.items()}
    if seconds and sys.stderr.isatty():
        print(f"measuring {plural(len(subjects), 'model')} for up to {seconds:.0f} s …", file=sys.stderr)
    return measure_costs(subjects, target.baseline, device, seconds)


def _print(target: "Target", costs: "Costs", by_module: bool) -> None:
    from attnzoo.console import console
    from attnzoo.cost.published import published
    from attnzoo.cost.table import cost_tables, module_table, published_table

    tables = cost_tables(costs)
    variant = costs.variants[0]
    figures = published(target.preset) if target.preset else None
    if figures and figures.size == variant.size:
        tables.append(published_table(variant, figures))
    if by_module:
        tables += map(module_table, costs.variants)
    for table in tables:
        table.print(console())


def _write(costs: "Costs", sweep: Path) -> Path:
    from attnzoo.rundir.costs import write_costs

    try:
        return write_costs(costs, sweep)
    except OSError as error:
        raise UserError(f"{sweep}: costs.json cannot be written ({error.strerror})") from None


def _parse_size(text: str) -> "Size":
    match = re.fullmatch(r"([1-9]\d*)[x×]([1-9]\d*)", text)
    if not match:
        raise UserError(f"--at {text}: expected HxW in pixels, such as 224x224")
    size = int(match[1]), int(match[2])
    check_pixels("--at", size)
    return size
