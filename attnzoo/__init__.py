"""attnzoo: compare deformable attention variants in shared detection models.

Importing this package imports neither torch nor a model, so that the command line answers at once.
"""

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import device

    from attnzoo.inference.loaded import LoadedModel
    from attnzoo.report.results import Results

__version__ = "0.2.0"


def results(*folders: "str | Path") -> "Results":
    """The runs in `folders`, of runs or with a results.json, as a table for notebooks: `attnzoo.results("runs/x")`.

    Raises UserError for a folder without runs, TypeError for what is no path.
    """
    from attnzoo.errors import check_type
    from attnzoo.report.results import read_results

    for folder in folders:
        check_type("folders", folder, (str, PathLike), "paths of folders")
    return read_results(*folders)


def load_model(
    path: "str | Path",
    *,
    preset: str | None = None,
    source: str = "auto",
    overrides: "Sequence[str]" = (),
    class_names: "Sequence[str] | None" = None,
    device: "str | device" = "cpu",
) -> "LoadedModel":
    """A trained model with class names, preprocessing and `predict`; see `attnzoo.inference.load.load_model`.

    `path` is a run folder, a checkpoint, a file of published weights, or a Hugging Face folder. Raises UserError for
    anything else.
    """
    from attnzoo.inference.load import load_model

    return load_model(path, preset=preset, source=source, overrides=overrides, class_names=class_names, device=device)
