"""The final outputs of a sweep: its comparison and TensorBoard's HParams."""

from collections.abc import Sequence
from pathlib import Path

from attnzoo.report import hparams
from attnzoo.report.compare import compare
from attnzoo.report.table import print_comparison, write_comparison
from attnzoo.rundir.folder import RunFolder


def summarize(sweep: Path, runs: Sequence[Path]) -> None:
    """Print and write the comparison of `runs`, unless all are corrupt; write the HParams of all runs of `sweep`."""
    if all(RunFolder(run).corruption() for run in runs):
        return
    comparison = compare(runs)
    print_comparison(comparison)
    for path in write_comparison(comparison, sweep):
        print(path)
    hparams.write_sweep(sweep)
