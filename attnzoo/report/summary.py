"""What the end of a sweep shows: the comparison of its runs, and TensorBoard's table of hyperparameters."""

from collections.abc import Sequence
from pathlib import Path

from attnzoo.report import hparams
from attnzoo.report.compare import compare
from attnzoo.report.table import print_comparison, write_comparison


def summarize(sweep: Path, runs: Sequence[Path]) -> None:
    """Compare these runs, in the terminal and in files, and give TensorBoard the options of all of the sweep's."""
    comparison = compare(runs)
    print_comparison(comparison)
    for path in write_comparison(comparison, sweep):
        print(path)
    hparams.write_sweep(sweep)
