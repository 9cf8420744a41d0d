"""`attnzoo VERB` or `python -m attnzoo VERB`: run, status, cancel, compare, check, bench, list."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from attnzoo import run
from attnzoo.bench import cli as bench_cli


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of `attnzoo` and `python -m attnzoo`; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["run"]:  # its overrides may stand anywhere, which argparse allows no sub-command
        return run.main(words[1:], "attnzoo run")
    parser = argparse.ArgumentParser("attnzoo", description="Which attention should this vision model use?")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("run", help="train what an experiment file describes")
    following = verbs.add_parser("status", help="where the runs of a sweep are")
    following.add_argument("folder", metavar="RUNS_DIR", type=Path, help="the folder of a sweep")
    following.add_argument("--watch", action="store_true", help="keep up with them until none is active")
    following.add_argument("--json", action="store_true", help="everything that is known, for programs")
    following.set_defaults(command=_status)
    cancelling = verbs.add_parser("cancel", help="stop the runs of a sweep; they save first")
    cancelling.add_argument("folder", metavar="RUNS_DIR", type=Path, help="the folder of a sweep")
    cancelling.add_argument("runs", metavar="RUN", nargs="*", help="these runs only, by their names")
    cancelling.set_defaults(command=_cancel)
    comparing = verbs.add_parser("compare", help="compare finished runs: means, intervals, cost")
    comparing.add_argument("folders", metavar="RUNS_DIR", nargs="+", type=Path, help="a folder of runs")
    comparing.set_defaults(command=_compare)
    checking = verbs.add_parser("check", help="check an attention against the contract")
    checking.add_argument("target", metavar="FILE.py", help="a file with an attention, or the name of a registered one")
    checking.add_argument(
        "words", metavar="NAME, option=value", nargs="*", help="one of the file's; options such as points=8"
    )
    checking.add_argument("-v", "--verbose", action="store_true", help="show tracebacks, warnings and logs")
    checking.set_defaults(command=_check)
    measuring = bench_cli.add_arguments(
        verbs.add_parser("bench", help="time operators, attentions and models beside others")
    )
    measuring.set_defaults(command=bench_cli.main)
    listing = verbs.add_parser("list", help="list attentions, models, data sets and augmentations")
    listing.add_argument("--ops", action="store_true", help="list the operators' backends instead")
    listing.set_defaults(command=_list)
    given = parser.parse_args(words)
    return run.report_errors(lambda: given.command(given))


def _status(given: argparse.Namespace) -> int:
    from attnzoo.report.status_table import print_status

    return print_status(given.folder, given.watch, given.json)


def _cancel(given: argparse.Namespace) -> int:
    from attnzoo.sweep.cancel import cancel

    for line in cancel(given.folder, given.runs):
        print(line)
    return 0


def _compare(given: argparse.Namespace) -> int:
    from attnzoo.report import hparams
    from attnzoo.report.compare import compare
    from attnzoo.report.table import print_comparison, write_comparison

    comparison = compare(given.folders)
    print_comparison(comparison)
    if len(given.folders) == 1:
        write_comparison(comparison, given.folders[0])
        hparams.write_sweep(given.folders[0])
    return 0


def _check(given: argparse.Namespace) -> int:
    from attnzoo.contract.command import check

    return check(given.target, given.words, given.verbose)


def _list(given: argparse.Namespace) -> int:
    if given.ops:
        from attnzoo import ops

        for name, state in ops.backends().items():
            print(f"{name}: {state}")
        return 0
    from attnzoo import attention, models
    from attnzoo.data.build import (
        CLASSIFICATION_AUGMENTATIONS,
        CLASSIFICATION_DATASETS,
        DETECTION_AUGMENTATIONS,
        DETECTION_DATASETS,
    )

    for title, names in (
        ("attentions", attention.names()),
        ("models", models.names()),
        ("detection data sets", DETECTION_DATASETS.names()),
        ("detection augmentations", DETECTION_AUGMENTATIONS.names()),
        ("classification data sets", CLASSIFICATION_DATASETS.names()),
        ("classification augmentations", CLASSIFICATION_AUGMENTATIONS.names()),
    ):
        print(f"{title}: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
