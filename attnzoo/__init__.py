"""attnzoo: compare deformable attention variants in shared detection models.

Importing this package imports neither torch nor a model, so that the command line answers at once.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from attnzoo.report.results import Results

__version__ = "0.1.0"


def results(*folders: "str | Path") -> "Results":
    """The runs in `folders`, of runs or with a results.json, as a table for notebooks: `attnzoo.results("runs/x")`.

    Raises UserError for a folder without runs.
    """
    from attnzoo.report.results import read_results

    return read_results(*folders)
