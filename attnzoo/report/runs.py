"""Reading runs from their folders."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.load import digest, load
from attnzoo.errors import UserError
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.ledger import Ledger
from attnzoo.rundir.metrics import METRICS


@dataclass(frozen=True)
class Result:
    """One run: its config, its state, the last value of each of METRICS, and the steps it made.

    `variant` is its name in the sweep, if it has one.
    """

    path: Path
    config: ExperimentConfig
    digest: str
    state: str
    metrics: dict[str, float]
    steps: int
    variant: str | None = None

    @property
    def experiment(self) -> str:
        return self.config.name


def read(path: Path) -> Result:
    """The run in a folder. Raises UserError for a config that is not one."""
    run = RunFolder(path)
    config = load(run.config)
    rows = run.read_metrics()
    metrics = {metric.key: row[metric.key] for row in rows for metric in METRICS if metric.key in row}
    steps = max((row["step"] for row in rows), default=0)
    return Result(path, config, digest(config), str(run.read_status()["state"]), metrics, steps)


def find(folders: Iterable[Path]) -> list[Result]:
    """The runs in `folders`, each the folder of a run, of a sweep or of several sweeps.

    Raises UserError for a folder without any, and for a run that is there twice.
    """
    found: dict[Path, Any] = {}
    for folder in folders:
        configs = [folder / "config.yaml", *folder.glob("*/config.yaml"), *folder.glob("*/*/config.yaml")]
        runs = [config.parent for config in sorted(configs) if config.is_file()]
        if not runs:
            reason = "no runs in it" if folder.is_dir() else "no such folder"
            raise UserError(f"{folder}: {reason}; expected a folder of runs, such as runs/ablate_points")
        found |= {run.resolve(): run for run in runs}
    sweeps = dict.fromkeys(run.parent for run in found)
    entries = {sweep / name: entry for sweep in sweeps for name, entry in Ledger(sweep).read()["runs"].items()}
    order = {run: index for index, run in enumerate(entries)}  # that of the experiment files
    results = [
        replace(read(found[run]), variant=entries.get(run, {}).get("variant"))
        for run in sorted(found, key=lambda run: order.get(run, len(order)))
    ]
    known: dict[tuple[str, str, int], Path] = {}
    for result in results:
        key = (result.experiment, result.digest, result.config.seed)
        if (other := known.setdefault(key, result.path)) != result.path:
            raise UserError(f"{result.path}: the same config and seed as {other}; as two seeds they would count twice")
    return results
