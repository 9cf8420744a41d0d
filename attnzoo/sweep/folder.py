"""The folder of a sweep: its run folders and its ledger."""

import errno
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.load import Experiment, differences, digest, find_digest, load_saved, save, to_yaml
from attnzoo.config.options import resolve_options
from attnzoo.errors import UserError, plural
from attnzoo.files import read_bytes
from attnzoo.rundir import attempts, process
from attnzoo.rundir.folder import RunFolder, check_config
from attnzoo.rundir.ledger import Ledger
from attnzoo.sweep.expand import RunSpec, expand

# After the one difference that a user may take for a continuation.
LENGTHENED = (
    "; a run cannot be lengthened, because its learning rate and its comparison depend on its length: stop this one to "
    "keep to the old length, or sweep train.steps to compare lengths"
)
# Of a file that cannot be written, where the other runs could not be written either.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
LONGEST_FILE = "pictures/" + "0" * 60  # below a run's folder, or longer
MEND_CONFIG = "restore it to resume that run"
MAX_DIFFERENCES = 3  # named in a message


class SweepFolder:
    """`runs/<experiment>/`: one folder per run, sweep.json, the comparison."""

    def __init__(self, path: Path):
        self.path = path
        self.ledger = Ledger(path)

    def assign(self, runs: Iterable[RunSpec], name: str | None = None) -> list[RunSpec]:
        """The runs with their folders here: by the run's name, or by `name`.

        If that folder belongs to another config, the digest is appended: two configs never share a folder.
        """
        entries = self.entries()
        return [replace(run, folder=self._folder_of(run, name or run.name, entries)) for run in runs]

    def _folder_of(self, run: RunSpec, name: str, entries: Mapping[str, Any]) -> RunFolder:
        folder = RunFolder(self.path / name)
        taken = folder.path.exists() and not _belongs_to(folder, run, entries.get(name, {}))
        return RunFolder(self.path / f"{name}-{run.digest}") if taken else folder

    def create(
        self,
        runs: Sequence[RunSpec],
        experiment: str,
        to_start: Sequence[RunSpec] | None = None,
        comparison: Mapping[str, Any] | None = None,
    ) -> dict[str, str]:
        """Write the ledger, then the configs of new runs and of those in `to_start`, before anything trains.

        Configs are rewritten for runs that restart, because keys that do not affect results may have changed, and for
        those that were never started, because they may have been edited. Entries of earlier sweeps in this folder stay
        if they were started. `comparison`: how the runs are compared, the fields of a `SweepPlan`. Returns why runs of
        `to_start`, by default all, cannot start, by the names of their folders, which cannot be written. Raises
        UserError if the folder of the sweep cannot be.
        """
        unwritable = dict[str, str]()
        try:
            with self.ledger.update() as content:
                old = content["runs"]
                kept = {name: entry for name, entry in old.items() if self._was_started(name, entry)}
                entries = {run.folder.path.name: _entry(run, old.get(run.folder.path.name, {})) for run in runs}
                name = experiment.encode(errors="replace").decode()  # its path may be no text
                content |= {"experiment": name, "runs": kept | entries}
                if comparison is not None:
                    content["comparison"] = dict(comparison)
            rewritten = {run.folder.path for run in to_start or ()}
            for run in runs:
                if run.folder.path in rewritten or _is_new(run.folder):
                    reason = _save_config(run)
                    if reason and (to_start is None or run.folder.path in rewritten):
                        unwritable[run.folder.path.name] = reason
        except OSError as error:
            raise UserError(f"output folder {self.path}: cannot be written ({error.strerror})", key="output") from None
        return unwritable

    def record_start(self, run: RunSpec) -> None:
        """Count one more start of a run by this process."""
        with self.ledger.update() as content:
            content["local"] = process.current()  # again: a ledger that was rebuilt lacks it
            entry = content["runs"].setdefault(run.folder.path.name, {})
            entry["attempts"] = entry.get("attempts", 0) + 1
            entry.pop("cancelled", None)

    def entries(self) -> dict[str, dict[str, Any]]:
        """The ledger's runs by folder name; none if there is no ledger yet."""
        return dict(self.ledger.read()["runs"])

    def _was_started(self, name: str, entry: dict[str, Any]) -> bool:
        if "submission" in entry:
            return True
        try:
            RunFolder(self.path / name).status.stat()
        except OSError as error:
            return isinstance(error, PermissionError)  # nobody can say that it was not
        return True


def _save_config(run: RunSpec) -> str:
    """Write the config of a run; returns why its folder cannot be written, else "". Raises OSError for a full disk."""
    try:
        save(run.config, run.folder.config)
    except OSError as error:
        if error.errno in FULL or not os.path.lexists(run.folder.path):
            raise
        return f"{run.folder.config}: cannot be written ({error.strerror})"
    return ""


def check_location(run: Path) -> None:
    """Raise UserError unless the folder of a run can be where it is: not below a file, not too long a path."""
    for path in (run / LONGEST_FILE, *run.parents):
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:  # a path that is too long, a link to itself, a folder that may not be entered
            if isinstance(error, PermissionError) and os.path.lexists(run):
                return  # only that of this run, which is reported as such
            raise UserError(f"output folder {run.parent}: {error.strerror}", key="output") from None
        if stat.S_ISDIR(mode):
            return
        raise UserError(f"output folder {run.parent}: {path} is a file, not a folder", key="output")


def describe_restarts(runs: Sequence[RunSpec]) -> str | None:
    """Why runs restart from scratch in new folders, in one line; None if none does."""
    new = [(run, taken) for run in runs if (taken := _taken_folder(run)) is not None]
    if not new:
        return None
    run, taken = new[0]
    restart = "restart" if len(runs) > 1 else "restarts"
    return (
        f"{len(new)} of {plural(len(runs), 'run')} {restart} from scratch, the first in {run.folder.path}: "
        f"{taken.path.name} {_describe_differences(taken, run)}"
    )


def _taken_folder(run: RunSpec) -> RunFolder | None:
    """The folder with the run's name that belongs to another config, if the run's own folder is yet to be created."""
    path = run.folder.path
    taken = path.with_name(path.name.removesuffix(f"-{run.digest}"))
    return RunFolder(taken) if taken != path and not path.exists() else None


def _describe_differences(taken: RunFolder, run: RunSpec) -> str:
    mend = ""
    try:
        check_config(taken.config)
        old = load_saved(taken.config)
    except UserError:
        recorded = _recorded_config(taken)
        if recorded is None:
            return f"has a {taken.config.name} that is damaged or was changed since it was written: {MEND_CONFIG}"
        old, mend = recorded, f"; its {taken.config.name} was changed since it was written: {MEND_CONFIG}"
    diffs = differences(old, run.config)
    more = " and more" if len(diffs) > MAX_DIFFERENCES else LENGTHENED if all(map(_is_length, diffs)) else ""
    return f"has {'; '.join(diffs[:MAX_DIFFERENCES])}{more}{mend}"


def _recorded_config(folder: RunFolder) -> ExperimentConfig | None:
    """The config of a run whose own is damaged or was changed, from its experiment file; None if that has changed."""
    content = Ledger(folder.path.parent).read()
    try:
        named = [run for run in expand(Experiment(content["experiment"])) if run.name == folder.path.name]
        configs = [resolve_options(run.config) for run in named]
    except (UserError, OSError):
        return None
    known = content["runs"].get(folder.path.name, {}).get("digest")
    return next((config for config in configs if digest(config) == known), None)


def _is_length(difference: str) -> bool:
    return difference.startswith(("train.steps = ", "train.epochs = "))


def _entry(run: RunSpec, old: dict[str, Any]) -> dict[str, Any]:
    swept = {
        "variant": run.variant,
        "variant_name": run.variant_name,
        "overrides": run.overrides,
        "labels": run.labels,
    }
    if old and run.variant is None and not run.overrides:  # resumed by its own config.yaml, which has no sweep
        swept = {}
    starts = old.get("attempts")
    if starts is None:  # the ledger was lost
        starts = len(attempts.read(run.folder))
    return old | swept | {"seed": run.seed, "digest": run.digest, "attempts": starts}


def _is_new(folder: RunFolder) -> bool:
    """Whether a run has no config of its own yet, or was never started."""
    try:
        status, rows = folder.read()
    except UserError:
        return False
    return status["state"] == "pending" and not rows


def _belongs_to(folder: RunFolder, run: RunSpec, entry: Mapping[str, Any]) -> bool:
    """Whether a folder is empty or has the run's config and seed.

    By its ledger `entry` if the config cannot be read. If there is no entry either, a corrupt run has the folder that
    its name says: it is reported, not trained again in another folder.
    """
    recorded = (entry.get("digest"), entry.get("seed")) == (run.digest, run.seed)
    try:
        content = read_bytes(folder.config)
    except OSError:
        content = None
    if content == to_yaml(run.config).encode():  # ten times as fast as loading it
        return True
    if folder.corruption():
        return recorded or "digest" not in entry
    if content is None:
        return recorded or _is_empty(folder.path)
    try:
        config = load_saved(folder.config)
    except UserError:  # of another version of the schema, or edited by hand
        return recorded
    return config.seed == run.seed and find_digest(config, [run.digest]) is not None


def _is_empty(folder: Path) -> bool:
    """Whether nothing is known to be in a folder: it may be one that may not be read."""
    try:
        return not any(folder.iterdir())
    except PermissionError:
        return True
