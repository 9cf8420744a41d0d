"""The final outputs of a sweep: its comparison, as text and as a page, and TensorBoard's HParams."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from attnzoo.errors import one_line, printable
from attnzoo.paths import user_path
from attnzoo.report import hparams
from attnzoo.report.compare import compare
from attnzoo.report.comparison import Comparison
from attnzoo.report.page.write import write_page
from attnzoo.report.records import read_records, save_results
from attnzoo.report.runs import RESULTS, find_plan
from attnzoo.report.table import markdown, print_comparison, write_comparison
from attnzoo.rundir.costs import write_costs
from attnzoo.rundir.folder import RunFolder

PAGE = "comparison.html"


def save(folders: Sequence[Path], comparison: Comparison, path: Path) -> list[Path]:
    """Write the comparison of the runs in `folders`, as text and as a page, and its raw results into the folder `path`.

    Returns the files. They keep the baseline and the margin that the comparison was made with.
    """
    plan = find_plan(folders)
    records, _ = read_records([*folders, *map(Path, plan.include)])
    if paired := comparison.paired:
        plan = replace(plan, baseline=paired.baseline if paired.is_given else None, margin=paired.margin)
    save_results(records, dataclasses.asdict(replace(plan, include=())), path / RESULTS)
    costs = [write_costs(comparison.costs, path)] if comparison.costs else []
    written = [path / RESULTS, *costs, *write_comparison(comparison, path), path / PAGE]
    write_page(comparison, path / PAGE)
    return written


def write_outputs(comparison: Comparison, sweep: Path) -> list[Path]:
    """Write the comparison into the folder of its sweep as text, page and HParams; returns the first two's files.

    A page or HParams that cannot be written are a warning: the rest is complete without them.
    """
    written = write_comparison(comparison, sweep)
    page = sweep / PAGE
    try:
        write_page(comparison, page)
        written.append(page)
    except Exception as error:
        print(f"warning: {page} was not written ({one_line(f'{type(error).__name__}: {error}')})", file=sys.stderr)
    records = [run for variant in comparison.variants for run in variant.runs]
    try:
        hparams.write_sweep(sweep, markdown(comparison), records)
    except OSError as error:
        name = os.fsdecode(error.filename)
        print(f"warning: {printable(name)}: not written for TensorBoard ({error.strerror})", file=sys.stderr)
    return written


def summarize(sweep: Path, runs: Sequence[Path]) -> None:
    """Write and print the comparison of `runs`, unless all are corrupt; HParams: of all runs of `sweep`."""
    if runs and all(RunFolder(run).corruption() for run in runs):
        return
    folders = [run for run in runs if run.is_dir()]  # what lies in place of another is reported as corrupt
    comparison = compare(folders or [user_path(folder) for folder in find_plan([sweep]).include])
    written, warning = list[Path](), ""
    try:
        written = write_outputs(comparison, sweep)  # first: nobody may read the output any more
    except OSError as error:
        warning = f"warning: {error.filename}: the comparison was not written ({error.strerror})"
    print_comparison(comparison)
    for path in written:
        print(path)
    if warning:
        print(warning, file=sys.stderr)
