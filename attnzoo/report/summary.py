"""The final outputs of a sweep: its comparison and TensorBoard's HParams."""

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from attnzoo.report import hparams
from attnzoo.report.compare import compare
from attnzoo.report.comparison import Comparison
from attnzoo.report.records import read_records, save_results
from attnzoo.report.runs import RESULTS, find_plan
from attnzoo.report.table import markdown, print_comparison, write_comparison
from attnzoo.rundir.folder import RunFolder


def save(folders: Sequence[Path], comparison: Comparison, path: Path) -> list[Path]:
    """Write the comparison of the runs in `folders`, and its raw results, into the folder `path`; returns the files."""
    plan = find_plan(folders)
    records, _ = read_records([*folders, *map(Path, plan.include)])
    save_results(records, dataclasses.asdict(replace(plan, include=())), path / RESULTS)
    return [path / RESULTS, *write_comparison(comparison, path)]


def summarize(sweep: Path, runs: Sequence[Path]) -> None:
    """Print and write the comparison of `runs`, unless all are corrupt; write the HParams of all runs of `sweep`."""
    if runs and all(RunFolder(run).corruption() for run in runs):
        return
    comparison = compare(runs or [Path(folder) for folder in find_plan([sweep]).include])
    print_comparison(comparison)
    for path in write_comparison(comparison, sweep):
        print(path)
    hparams.write_sweep(sweep, markdown(comparison))
