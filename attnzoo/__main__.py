"""`python -m attnzoo VERB`: run, compare, list."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from attnzoo import run


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of `attnzoo` and `python -m attnzoo`."""
    parser = argparse.ArgumentParser("attnzoo", description="Which attention should this vision model use?")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    running = run.arguments(verbs.add_parser("run", help="train what an experiment file describes"))
    running.set_defaults(command=run.start)
    comparing = verbs.add_parser("compare", help="compare finished runs: means, intervals, cost")
    comparing.add_argument("folders", metavar="RUNS_DIR", nargs="+", type=Path, help="a folder of runs")
    comparing.set_defaults(command=_compare)
    listing = verbs.add_parser("list", help="list attentions, models, data sets and augmentations")
    listing.add_argument("--ops", action="store_true", help="list the operators' backends instead")
    listing.set_defaults(command=_list)
    given = parser.parse_args(argv)
    return run.report_errors(lambda: given.command(given))


def _compare(given: argparse.Namespace) -> int:
    from attnzoo.report.compare import compare, write
    from attnzoo.report.table import show

    comparison = compare(given.folders)
    show(comparison)
    if len(given.folders) == 1:
        write(comparison, given.folders[0])
    return 0


def _list(given: argparse.Namespace) -> int:
    if given.ops:
        from attnzoo import ops

        for name, state in ops.backends().items():
            print(f"{name}: {state}")
        return 0
    from attnzoo import attention, config, data

    for title, names in (
        ("attentions", attention.names()),
        ("models", config.presets()),
        ("detection data sets", data.DATASETS.names()),
        ("detection augmentations", data.AUGMENTATIONS.names()),
        ("classification data sets", data.LABELLED.names()),
        ("classification augmentations", data.IMAGE_AUGMENTATIONS.names()),
    ):
        print(f"{title}: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
