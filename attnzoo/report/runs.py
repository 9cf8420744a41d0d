"""Finds run folders."""

from collections.abc import Iterable
from pathlib import Path

from attnzoo.errors import UserError
from attnzoo.rundir.folder import RunFolder


def find_runs(folders: Iterable[Path]) -> list[RunFolder]:
    """The runs in `folders`, each the folder of a run, of a sweep or of several sweeps.

    Raises UserError for a folder without runs.
    """
    runs: dict[Path, RunFolder] = {}
    for folder in folders:
        configs = [folder / "config.yaml", *folder.glob("*/config.yaml"), *folder.glob("*/*/config.yaml")]
        paths = [config.parent for config in sorted(configs) if config.is_file()]
        if not paths:
            reason = "no runs in it" if folder.is_dir() else "no such folder"
            raise UserError(f"{folder}: {reason}; expected a folder of runs, such as runs/ablate_points")
        runs |= {path.resolve(): RunFolder(path) for path in paths}
    return list(runs.values())
