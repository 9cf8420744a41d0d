"""The final outputs of a sweep: its comparison and TensorBoard's HParams."""

from collections.abc import Sequence
from pathlib import Path

from attnzoo.report import hparams
from attnzoo.report.compare import compare
from attnzoo.report.table import print_comparison, write_comparison
from attnzoo.rundir.folder import RunFolder


def summarize(sweep: Path, runs: Sequence[Path]) -> None:
    """Print and write the comparison of the undamaged `runs`; write the HParams of all runs of `sweep`."""
    readable = [run for run in runs if RunFolder(run).damage() is None]
    if not readable:
        return
    comparison = compare(readable)
    print_comparison(comparison)
    for path in write_comparison(comparison, sweep):
        print(path)
    hparams.write_sweep(sweep)
