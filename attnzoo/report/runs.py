"""Finds run folders."""

from collections.abc import Iterable
from pathlib import Path

from attnzoo.errors import UserError
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.ledger import Ledger


def find_runs(folders: Iterable[Path]) -> dict[RunFolder, str | None]:
    """The runs in `folders`, each the folder of a run, of a sweep or of several sweeps, with the variants' names.

    Runs of a sweep are in the order of its experiment file; those that were started are found without their config
    too. Raises UserError for a folder without runs.
    """
    runs: dict[Path, RunFolder] = {}
    for folder in folders:
        candidates = [folder, *folder.glob("*/"), *folder.glob("*/*/")]
        paths = [path for path in sorted(candidates) if _is_run(RunFolder(path))]
        if not paths:
            reason = "no runs in it" if folder.is_dir() else "no such folder"
            raise UserError(f"{folder}: {reason}; expected a folder of runs, such as runs/ablate_points")
        runs |= {path.resolve(): RunFolder(path) for path in paths}
    sweeps = dict.fromkeys(path.parent for path in runs)
    entries = {sweep / name: entry for sweep in sweeps for name, entry in Ledger(sweep).read()["runs"].items()}
    order = {path: index for index, path in enumerate(entries)}
    ordered = sorted(runs, key=lambda path: order.get(path, len(order)))
    return {runs[path]: entries.get(path, {}).get("variant") for path in ordered}


def _is_run(run: RunFolder) -> bool:
    return any(path.is_file() for path in (run.config, run.status, run.metrics))
