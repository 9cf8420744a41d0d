"""Submitting a sweep to SLURM: one job array for each group of runs that ask for the same resources."""

import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import _make_sbatch_string

from attnzoo import slurm
from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.slurm import parse_minutes, tasks_per_node
from attnzoo.errors import UserError
from attnzoo.rundir.ledger import JOB_COMMENT_PREFIX
from attnzoo.sweep.folder import Planned, SweepFolder
from attnzoo.sweep.local import THREAD_VARIABLES
from attnzoo.sweep.snapshot import take
from attnzoo.sweep.supervise import RunJob

ARRAY_SIZE = 1000  # SLURM's default MaxArraySize allows one more
TO_COME = "NUMBER"  # of a submission, in what a dry run prints


@dataclass(frozen=True)
class Group:
    """Runs that ask for the same; `options` are those of submitit's SlurmExecutor."""

    runs: list[Planned]
    options: dict[str, Any]

    def executor_options(self, folder: Path, code: Path) -> dict[str, Any]:
        """The options with what belongs to one submission: its folder and the snapshot of the code."""
        return self.options | {
            "comment": f"{JOB_COMMENT_PREFIX}{folder}",
            "setup": [*self.options["setup"], *_environment(self.runs[0].run.config, code)],
        }

    def script(self, folder: Path, code: Path) -> str:
        """The batch script as it will be submitted."""
        command = "python -u -m submitit.core._submit " + shlex.quote(str(folder))
        options = self.executor_options(folder, code)
        if len(self.runs) > 1:
            options["map_count"] = len(self.runs)
        return str(_make_sbatch_string(command, folder, **options))


def groups(planned: Sequence[Planned]) -> list[Group]:
    """The runs by what they ask for, in the order of the first of each, in groups that fit a job array."""
    found: dict[str, list[Planned]] = {}
    for p in planned:
        key = json.dumps([_options(p.run.config), p.run.config.threads, p.run.config.processes])
        found.setdefault(key, []).append(p)
    parts = [runs[i : i + ARRAY_SIZE] for runs in found.values() for i in range(0, len(runs), ARRAY_SIZE)]
    return [Group(runs, _options(runs[0].run.config)) for runs in parts]


def check(found: Sequence[Group], folder: SweepFolder) -> None:
    """Let SLURM try every group's batch script without submitting it. Raises UserError with SLURM's words."""
    for group in found:
        place = folder.ledger.submission_folder(TO_COME).resolve()
        if words := slurm.rejection(group.script(place, place.parent / "code")):
            asked = ", ".join(f"{key}={value}" for key, value in _spoken(group.options).items())
            raise UserError(f"SLURM refuses {group.runs[0].run.name}: {words} (asked for: {asked})")


def describe(found: Sequence[Group], folder: SweepFolder) -> str:
    """What would be submitted: each group's runs, resources and batch script."""
    lines = []
    for number, group in enumerate(found, start=1):
        asked = ", ".join(f"{key}={value}" for key, value in _spoken(group.options).items())
        lines += ["", f"group {number}: {len(group.runs)} runs with {asked}"]
        lines += [f"  {index}: {p.dir.path.name}" for index, p in enumerate(group.runs)]
        place = folder.ledger.submission_folder(TO_COME).resolve()
        lines += [group.script(place, place.parent / "code" / "DIGEST").rstrip()]
    return "\n".join(lines)


def submit(found: Sequence[Group], folder: SweepFolder) -> list[str]:
    """Submit each group; returns a line for each. Raises UserError with SLURM's words if it refuses one.

    The ledger knows of a submission before SLURM does, and its job can be found by its comment: whenever this
    process disappears, no run is submitted twice or forgotten.
    """
    plugins = {plugin for group in found for p in group.runs for plugin in p.run.config.plugins}
    code = take((folder.path / "slurm" / "code").resolve(), sorted(plugins))
    return [_submit(group, folder, code) for group in found]


def _submit(group: Group, folder: SweepFolder, code: Path) -> str:
    names = [p.dir.path.name for p in group.runs]
    with folder.ledger.update() as content:
        number = f"{1 + max(map(int, content['submissions']), default=0):03d}"
        content["submissions"][number] = {"job": None, "runs": names, "time": time.time()}
        for task, name in enumerate(names):
            entry = content["runs"][name]
            entry |= {"attempts": entry["attempts"] + 1, "submission": number, "task": task}
            entry.pop("cancelled", None)
    place = folder.ledger.submission_folder(number).resolve()
    executor = submitit.SlurmExecutor(place)
    executor.update_parameters(**group.executor_options(place, code))
    try:
        job = executor.submit_array([_job(p, code) for p in group.runs])[0]
    except FailedJobError as error:
        with folder.ledger.update() as content:
            del content["submissions"][number]
        raise UserError(f"sbatch: {str(error).strip()}") from None
    identifier = slurm.array_job_id(job.job_id)
    with folder.ledger.update() as content:
        content["submissions"][number]["job"] = identifier
    return f"submitted {len(names)} run{'s' if len(names) > 1 else ''} as job {identifier} ({place})"


def _job(planned: Planned, code: Path) -> RunJob:
    config = planned.run.config
    retries = config.retries if config.slurm.retries is None else config.slurm.retries
    return RunJob(str(planned.dir.path.resolve()), config.slurm.nodes, config.processes, retries, str(code))


def _options(config: ExperimentConfig) -> dict[str, Any]:
    slurm = config.slurm
    asked = {
        "job_name": config.name,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "nodes": slurm.nodes,
        "ntasks_per_node": tasks_per_node(slurm, config.processes),
        "cpus_per_task": slurm.cpus_per_task,
        "gpus_per_node": slurm.gpus_per_node or None,
        "mem": slurm.memory,
        "time": parse_minutes(slurm.time),
        "signal_delay_s": slurm.signal_seconds,
        "array_parallelism": slurm.parallelism,
        "setup": slurm.setup,
        "additional_parameters": {"requeue": True, **_given(slurm.options)},
        "use_srun": False,  # the supervisor calls it
        "stderr_to_stdout": True,
    }
    return {key: value for key, value in asked.items() if value is not None}


def _given(options: Mapping[str, bool | int | str]) -> dict[str, bool | int | str]:
    """Without those that are switched off; True stands for an option without a value."""
    return {name: value for name, value in options.items() if value is not False}


def _environment(config: ExperimentConfig, code: Path) -> list[str]:
    """The snapshot goes before all other code, the current folder, where plugins may be, behind it."""
    return [
        "export PYTHONSAFEPATH=1",
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}:{shlex.quote(os.getcwd())}",
        *(f"export {name}={config.threads}" for name in THREAD_VARIABLES),
    ]


def _spoken(options: dict[str, Any]) -> dict[str, Any]:
    hidden = ("job_name", "setup", "additional_parameters", "use_srun", "stderr_to_stdout", "signal_delay_s")
    return {key: value for key, value in options.items() if key not in hidden}
