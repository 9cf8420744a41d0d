"""What to do about costs that a sweep asks for and that were not measured."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from attnzoo.config.experiment import ExperimentConfig
from attnzoo.report.records import RunRecord
from attnzoo.rundir.costs import FILENAME
from attnzoo.rundir.ledger import Ledger


def missing_costs(runs: Iterable[RunRecord]) -> list[str]:
    """A line with the command that measures them; none if a run is not finished, or if there is not one sweep.

    The launcher on this machine measures costs after the last training. The jobs of a SLURM sweep do not: none has a
    node to itself, and which is the last is known only afterwards.
    """
    sweeps: dict[Path, list[RunRecord]] = {}
    for run in runs:
        sweeps.setdefault(run.source.parent, []).append(run)
    sweeps = {folder: own for folder, own in sweeps.items() if Ledger(folder).exists()}  # not those of results.json
    if len(sweeps) != 1:
        return []
    ((sweep, own),) = sweeps.items()
    names = {*Ledger(sweep).read()["runs"], *(run.source.name for run in own)}
    if names != {run.source.name for run in own if run.final} or (sweep / FILENAME).exists():
        return []
    config = own[0].config
    command = shlex.join([*_srun(config), "attnzoo", "cost", str(sweep)])
    where = ", on a node of its own" if config.launcher == "slurm" else ""
    return [f"Costs were not measured. To measure them{where}: {command}"]


def _srun(config: ExperimentConfig) -> Sequence[str]:
    """The start of a command on one node, with the resources of a run."""
    if config.launcher != "slurm":
        return []
    slurm = config.slurm
    options = {
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "cpus-per-task": slurm.cpus_per_task,
        "gpus": 1 if slurm.gpus_per_node else None,
    }
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return ["srun", "--exclusive", "--nodes=1", "--ntasks=1", *given]
