"""Submits a sweep to SLURM: one job array for each group of runs that need the same resources."""

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from attnzoo import slurm
from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.slurm import parse_minutes, tasks_per_node
from attnzoo.errors import UserError, plural
from attnzoo.rundir.ledger import JOB_COMMENT_PREFIX
from attnzoo.sweep.expand import RunSpec
from attnzoo.sweep.folder import SweepFolder
from attnzoo.sweep.snapshot import create_snapshot
from attnzoo.sweep.supervise import supervise
from attnzoo.sweep.workers import THREAD_VARIABLES

ARRAY_SIZE = 1000  # SLURM's default MaxArraySize allows one more
DRY_RUN_ID = "NUMBER"  # of a submission, in the scripts of a dry run


@dataclass(frozen=True)
class JobGroup:
    """Runs that need the same resources; `options` are passed to submitit's SlurmExecutor."""

    runs: list[RunSpec]
    options: dict[str, Any]

    @property
    def resources(self) -> str:
        """The requested resources, for messages."""
        hidden = ("job_name", "setup", "additional_parameters", "use_srun", "stderr_to_stdout", "signal_delay_s")
        return ", ".join(f"{key}={value}" for key, value in self.options.items() if key not in hidden)

    def executor_options(self, folder: Path, code: Path) -> dict[str, Any]:
        """The options of one submission, with its folder and the snapshot of the code."""
        return self.options | {
            "comment": f"{JOB_COMMENT_PREFIX}{folder}",
            "setup": [*self.options["setup"], *_environment(self.runs[0].config, code)],
        }

    def script(self, folder: Path, code: Path) -> str:
        """The batch script to be submitted."""
        return _batch_script(folder, self.executor_options(folder, code), len(self.runs))


def _batch_script(folder: Path, options: Mapping[str, Any], num_jobs: int) -> str:
    """The script that `SlurmExecutor(folder)`, with these options, submits for `num_jobs` jobs."""
    # private: submitit has no public way to a script without submitting it, and its executor needs srun even to be made
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return str(_make_sbatch_string(command, folder, map_count=num_jobs if num_jobs > 1 else None, **options))


def group_by_resources(runs: Sequence[RunSpec]) -> list[JobGroup]:
    """Groups of runs that need the same resources and fit into one job array, in the order of their first runs."""
    groups: dict[str, list[RunSpec]] = {}
    for run in runs:
        key = json.dumps([_options(run.config), run.config.threads, run.config.processes])
        groups.setdefault(key, []).append(run)
    arrays = [group[i : i + ARRAY_SIZE] for group in groups.values() for i in range(0, len(group), ARRAY_SIZE)]
    return [JobGroup(array, _options(array[0].config)) for array in arrays]


def check(groups: Sequence[JobGroup], folder: SweepFolder) -> None:
    """Validate the batch scripts with `sbatch --test-only`. Raises UserError with SLURM's message."""
    for group in groups:
        submission = folder.ledger.submission_folder(DRY_RUN_ID).resolve()
        if error := slurm.rejection(group.script(submission, submission.parent / "code")):
            raise UserError(f"sbatch rejects {group.runs[0].name}: {error} (requested: {group.resources})", key="slurm")


def format_dry_run(groups: Sequence[JobGroup], folder: SweepFolder) -> str:
    """What would be submitted: each group's runs, resources and batch script."""
    lines = []
    for number, group in enumerate(groups, start=1):
        lines += ["", f"group {number}: {plural(len(group.runs), 'run')} with {group.resources}"]
        lines += [f"  {index}: {run.folder.path.name}" for index, run in enumerate(group.runs)]
        submission = folder.ledger.submission_folder(DRY_RUN_ID).resolve()
        lines += [group.script(submission, submission.parent / "code" / "DIGEST").rstrip()]
    return "\n".join(lines)


def submit(groups: Sequence[JobGroup], folder: SweepFolder) -> list[str]:
    """Submit each group; returns a line for each. Raises UserError with sbatch's message if it rejects one.

    A submission is in the ledger before sbatch runs, and its job is found by its comment: a crash of this process
    neither loses a run nor submits it twice.
    """
    plugins = {plugin for group in groups for run in group.runs for plugin in run.config.plugins}
    code = create_snapshot((folder.path / "slurm" / "code").resolve(), sorted(plugins))
    return [_submit(group, folder, code) for group in groups]


def _submit(group: JobGroup, folder: SweepFolder, code: Path) -> str:
    names = [run.folder.path.name for run in group.runs]
    with folder.ledger.update() as content:
        number = f"{1 + max(map(int, content['submissions']), default=0):03d}"
        content["submissions"][number] = {"job": None, "runs": names, "time": time.time()}
        for task, name in enumerate(names):
            entry = content["runs"][name]
            entry |= {"attempts": entry["attempts"] + 1, "submission": number, "task": task}
            entry.pop("cancelled", None)
    submission = folder.ledger.submission_folder(number).resolve()
    executor = submitit.SlurmExecutor(submission)
    executor.update_parameters(**group.executor_options(submission, code))
    try:
        job = executor.submit_array([_job(run, code) for run in group.runs])[0]
    except FailedJobError as error:  # its base class also covers jobs that sbatch has accepted
        with folder.ledger.update() as content:
            del content["submissions"][number]
        raise UserError(f"sbatch: {str(error).strip()}", key="slurm") from None
    job_id = slurm.array_job_id(job.job_id)
    with folder.ledger.update() as content:
        content["submissions"][number]["job"] = job_id
    return f"submitted {plural(len(names), 'run')} as job {job_id} ({submission})"


def _job(run: RunSpec, code: Path) -> "partial[None]":
    """What submitit pickles and calls on the first node."""
    config = run.config
    retries = config.retries if config.slurm.retries is None else config.slurm.retries
    return partial(
        supervise,
        str(run.folder.path.resolve()),
        nodes=config.slurm.nodes,
        processes=config.processes,
        retries=retries,
        code=str(code),
    )


def _options(config: ExperimentConfig) -> dict[str, Any]:
    slurm = config.slurm
    options = {
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
        "additional_parameters": {"requeue": True, **_enabled(slurm.options)},
        "use_srun": False,  # the supervisor calls it
        "stderr_to_stdout": True,
    }
    return {key: value for key, value in options.items() if value is not None}


def _enabled(options: Mapping[str, bool | int | str]) -> dict[str, bool | int | str]:
    """Drop options set to false; true is a flag without a value."""
    return {name: value for name, value in options.items() if value is not False}


def _environment(config: ExperimentConfig, code: Path) -> list[str]:
    """Shell lines that set PYTHONPATH (the snapshot first, the current folder with plugins last) and the threads."""
    return [
        "export PYTHONSAFEPATH=1",
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}:{shlex.quote(os.getcwd())}",
        *(f"export {name}={config.threads}" for name in THREAD_VARIABLES),
    ]
