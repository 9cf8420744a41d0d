"""The folder of a sweep: where each run goes, and what the ledger says of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnzoo.config.load import differences, digest, load_saved, save, to_yaml
from attnzoo.errors import UserError
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.ledger import Ledger
from attnzoo.sweep.expand import RunSpec

SHOWN = 3  # differences that are named


@dataclass(frozen=True)
class Planned:
    """A run and the folder that it has or gets; `taken` is that of its name where another config holds it."""

    run: RunSpec
    dir: RunFolder
    taken: RunFolder | None = None

    @property
    def state(self) -> str:
        return str(self.dir.read_status()["state"])


class SweepFolder:
    """`runs/<experiment>/`: one folder per run, sweep.json, the comparison."""

    def __init__(self, path: Path):
        self.path = path
        self.ledger = Ledger(path)

    def place(self, runs: Iterable[RunSpec], at: str | None = None) -> list[Planned]:
        """Where each run goes: the folder of its name, or `at`.

        Where that folder holds another config, the name gets the config's digest: two never share one.
        """
        planned = []
        for run in runs:
            name = at or run.name
            folder = self.path / name
            if folder.exists() and not _holds(folder, run):
                planned.append(Planned(run, RunFolder(self.path / f"{name}-{run.digest}"), RunFolder(folder)))
            else:
                planned.append(Planned(run, RunFolder(folder)))
        return planned

    def create(self, planned: Sequence[Planned], experiment: str, todo: Sequence[Planned] = ()) -> None:
        """Write the ledger, then the config of every new run and of those in `todo`, before anything trains.

        The latter start again, and what does not shape their results may have changed.

        Entries of earlier sweeps in this folder stay if they were started. Raises UserError where nothing can be
        written.
        """
        try:
            with self.ledger.update() as content:
                known = content["runs"]
                kept = {name: entry for name, entry in known.items() if self._started(name, entry)}
                entries = {p.dir.path.name: _entry(p, known.get(p.dir.path.name, {})) for p in planned}
                content |= {"experiment": experiment, "runs": kept | entries}
            again = {p.dir.path for p in todo}
            for p in planned:
                if p.dir.path in again or not p.dir.config.exists():
                    save(p.run.config, p.dir.config)
        except OSError as error:
            raise UserError(f"output folder {self.path}: cannot be written ({error.strerror})") from None

    def attempt(self, planned: Planned) -> None:
        """Count one more start of a run."""
        with self.ledger.update() as content:
            entry = content["runs"][planned.dir.path.name]
            entry["attempts"] += 1
            entry.pop("cancelled", None)

    def entries(self) -> dict[str, dict[str, Any]]:
        """The ledger's runs by folder name; none where there is no ledger yet."""
        return dict(self.ledger.read()["runs"])

    def _started(self, name: str, entry: dict[str, Any]) -> bool:
        return "submission" in entry or (self.path / name / "status.json").exists()


def explain_new(todo: Sequence[Planned]) -> str | None:
    """Why runs begin anew beside others of their names, in one line; None if none does."""
    new = [p for p in todo if p.taken is not None and not p.dir.path.exists()]
    if not new:
        return None
    first = new[0]
    assert first.taken is not None
    return (
        f"{len(new)} of {len(todo)} runs begin anew, the first in {first.dir.path}: "
        f"{first.taken.path.name} {_difference(first.taken, first.run)}"
    )


def _difference(taken: RunFolder, run: RunSpec) -> str:
    try:
        found = differences(load_saved(taken.config), run.config)
    except UserError:
        return "holds something else"
    return f"has {'; '.join(found[:SHOWN])}{' and more' if len(found) > SHOWN else ''}"


def _entry(planned: Planned, known: dict[str, Any]) -> dict[str, Any]:
    run = planned.run
    return known | {
        "overrides": run.changes,
        "options": run.options,
        "seed": run.seed,
        "digest": run.digest,
        "attempts": known.get("attempts", 0),
    }


def _holds(folder: Path, run: RunSpec) -> bool:
    """Whether a folder is this very run's, or an empty one."""
    config = RunFolder(folder).config
    if not config.exists():
        return not any(folder.iterdir())
    if config.read_text() == to_yaml(run.config):  # loading would take ten times as long
        return True
    try:
        held = load_saved(config)
    except UserError:  # from another version of the schema, or edited: not this config
        return False
    return (digest(held), held.seed) == (run.digest, run.seed)
