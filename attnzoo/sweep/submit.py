"""Submits a sweep to SLURM: one job array for each group of runs that need the same resources."""

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnzoo import slurm
from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.slurm import parse_minutes, tasks_per_node
from attnzoo.errors import UserError, plural
from attnzoo.report.status import UNCERTAIN_SECONDS
from attnzoo.rundir.folder import atomic_write
from attnzoo.rundir.ledger import job_comment
from attnzoo.rundir.rebuild import JOB, JOBS
from attnzoo.sweep.expand import RunSpec
from attnzoo.sweep.folder import SweepFolder
from attnzoo.sweep.snapshot import create_snapshot
from attnzoo.sweep.workers import THREAD_VARIABLES

ARRAY_SIZE = 1000  # SLURM's default MaxArraySize allows one more
DRY_RUN_ID = "NUMBER"  # of a submission, in the scripts of a dry run
SCRIPT = "job.sh"
# In the name of a log sbatch replaces %j and the like; PYTHONPATH cannot hold a colon.
FORBIDDEN = {"%": "a percent sign", "\\": "a backslash", ":": "a colon", "\n": "a line break"}


@dataclass(frozen=True)
class JobGroup:
    """Runs that need the same resources; `options` are those of sbatch, `setup` the lines of shell before the run."""

    runs: list[RunSpec]
    options: dict[str, Any]
    setup: list[str]
    parallelism: int | None

    @property
    def resources(self) -> str:
        """The requested resources, for messages."""
        hidden = ("job-name", "signal", *self.runs[0].config.slurm.options)
        return ", ".join(f"{key}={value}" for key, value in self.options.items() if key not in hidden)

    def script(self, folder: Path, code: Path) -> str:
        """The batch script to be submitted, with the folder of its submission and the snapshot of the code."""
        is_array, last = len(self.runs) > 1, len(self.runs) - 1
        options = self.options | {
            "comment": job_comment(folder),
            "open-mode": "append",
            "output": f"{folder}/{'%A_%a' if is_array else '%j'}_log.out",
            "requeue": True,
        }
        if is_array:
            limit = f"%{min(self.parallelism, len(self.runs))}" if self.parallelism else ""
            options["array"] = f"0-{last}{limit}"
        flags = [_flag(name, value) for name, value in sorted(options.items()) if value is not False]
        command = shlex.join([sys.executable, "-u", "-m", "attnzoo.sweep.supervise", str(folder)])
        setup = [*self.setup, *_environment(self.runs[0].config, code)]
        return "\n".join(["#!/bin/bash", *flags, "", *setup, "", command, ""])


def _flag(name: str, value: bool | int | str) -> str:
    """A line of a batch script for an option of sbatch; `True` is a flag without a value."""
    return f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"


def group_by_resources(runs: Sequence[RunSpec]) -> list[JobGroup]:
    """Groups of runs that need the same resources and fit into one job array, in the order of their first runs."""
    groups: dict[str, list[RunSpec]] = {}
    for run in runs:
        key = json.dumps([_options(run.config), run.config.slurm.setup, run.config.threads, run.config.processes])
        groups.setdefault(key, []).append(run)
    arrays = [group[i : i + ARRAY_SIZE] for group in groups.values() for i in range(0, len(group), ARRAY_SIZE)]
    configs = [array[0].config for array in arrays]
    return [
        JobGroup(array, _options(config), config.slurm.setup, config.slurm.parallelism)
        for array, config in zip(arrays, configs, strict=True)
    ]


def check(groups: Sequence[JobGroup], folder: SweepFolder, validate: bool = True) -> None:
    """Check the paths, and `validate` the batch scripts with `sbatch --test-only`.

    Raises UserError with SLURM's message, and for folders whose names SLURM or the shell would read otherwise.
    """
    for key, path in (("output", folder.path.resolve()), ("", Path.cwd())):
        if found := next((text for character, text in FORBIDDEN.items() if character in str(path)), None):
            where = "output folder" if key else "current folder"
            raise UserError(f"{where} {path}: with SLURM its path may not contain {found}", key=key or ())
    for group in groups if validate else ():
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


@dataclass(frozen=True)
class Submission:
    """A submission that is in the ledger; `previous` has the entries that its runs had before."""

    number: str
    group: JobGroup
    previous: Mapping[str, Mapping[str, Any]]


def snapshot(runs: Sequence[RunSpec], folder: SweepFolder) -> Path:
    """The snapshot of the code for the jobs of these runs."""
    plugins = {plugin for run in runs for plugin in run.config.plugins}
    return create_snapshot((folder.path / "slurm" / "code").resolve(), sorted(plugins))


def reserve(groups: Sequence[JobGroup], folder: SweepFolder, content: dict[str, Any], code: Path) -> list[Submission]:
    """Write submissions of `groups` into the `content` of the ledger, and their folders, which sbatch needs.

    A submission is in the ledger before sbatch runs, and its job is found by its comment: a crash of this process
    neither loses a run nor submits it twice. Call it within the `update` of the ledger that decides what is missing.
    """
    submissions = []
    for group in groups:
        number, now = _create_folder(folder), time.time()
        names = [run.folder.path.name for run in group.runs]
        submissions.append(Submission(number, group, {name: dict(content["runs"][name]) for name in names}))
        content["submissions"][number] = {"job": None, "runs": names, "time": now}
        for task, name in enumerate(names):
            entry = content["runs"][name]
            entry |= {"attempts": entry.get("attempts", 0) + 1, "submission": number, "task": task}
            entry.pop("cancelled", None)
        path = folder.ledger.submission_folder(number).resolve()
        with atomic_write(path / SCRIPT) as file:
            file.write(group.script(path, code))
        with atomic_write(path / JOBS) as file:
            json.dump({"code": str(code), "time": now, "jobs": [_job(run) for run in group.runs]}, file, indent=1)
    return submissions


def _create_folder(folder: SweepFolder) -> str:
    """Create the folder of the next submission; returns its number. No number is used twice."""
    parent = folder.ledger.submission_folder("")
    parent.mkdir(parents=True, exist_ok=True)
    numbers = [int(name) for name in [*os.listdir(parent), *folder.ledger.read()["submissions"]] if name.isdecimal()]
    number = f"{1 + max(numbers, default=0):03d}"
    folder.ledger.submission_folder(number).mkdir()
    return number


def submit(submissions: Sequence[Submission], folder: SweepFolder) -> list[str]:
    """Submit to SLURM; returns a line for each submission.

    Raises UserError with sbatch's message if it rejects one; that and the later ones are taken out of the ledger. If
    SLURM may have accepted it all the same, it stays there.
    """
    lines = []
    for index, submission in enumerate(submissions):
        try:
            lines.append(_submit(submission, folder))
        except slurm.SubmissionUncertain as error:
            _release(submissions[index + 1 :], folder)
            number = plural(len(submission.group.runs), "run")
            hint = f"SLURM may have accepted the job of {number} all the same: `status` shows it if so; if not, "
            message = f"{error}; {hint}submit again after {UNCERTAIN_SECONDS // 60} minutes"
            raise UserError(message, key="slurm") from None
        except UserError as error:
            _release(submissions[index:], folder)
            raise UserError(str(error), key="slurm") from None
    return lines


def _submit(submission: Submission, folder: SweepFolder) -> str:
    path = folder.ledger.submission_folder(submission.number).resolve()
    try:
        job = slurm.submit(path / SCRIPT)
    except slurm.SlurmUnavailable as error:
        job = ""
        with suppress(slurm.SlurmUnavailable):
            job = slurm.job_with_comment(job_comment(path)) or ""
        if not job:
            raise error
    with atomic_write(path / JOB) as file:
        file.write(f"{job}\n")
    with folder.ledger.update() as content:
        content["submissions"][submission.number]["job"] = job
    return f"submitted {plural(len(submission.group.runs), 'run')} as job {job} ({path})"


def _release(submissions: Sequence[Submission], folder: SweepFolder) -> None:
    """Take submissions that SLURM does not have out of the ledger."""
    with folder.ledger.update() as content:
        for submission in submissions:
            content["submissions"].pop(submission.number, None)
            for name, entry in submission.previous.items():
                if content["runs"].get(name, {}).get("submission") == submission.number:
                    content["runs"][name] = dict(entry)
            (folder.ledger.submission_folder(submission.number) / JOBS).unlink(missing_ok=True)


def _job(run: RunSpec) -> dict[str, str | int]:
    """What the supervisor of a run needs to know."""
    config = run.config
    retries = config.retries if config.slurm.retries is None else config.slurm.retries
    folder = str(run.folder.path.resolve())
    return {"run": folder, "nodes": config.slurm.nodes, "processes": config.processes, "retries": retries}


def _options(config: ExperimentConfig) -> dict[str, Any]:
    slurm = config.slurm
    options = {
        "job-name": config.name,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "nodes": slurm.nodes,
        "ntasks-per-node": tasks_per_node(slurm, config.processes),
        "cpus-per-task": slurm.cpus_per_task,
        "gpus-per-node": slurm.gpus_per_node or None,
        "mem": slurm.memory,
        "time": parse_minutes(slurm.time),
        "signal": f"USR2@{slurm.signal_seconds}",
        **slurm.options,
    }
    return {key: value for key, value in options.items() if value is not None}


def _environment(config: ExperimentConfig, code: Path) -> list[str]:
    """Shell lines that set PYTHONPATH (the snapshot first, the current folder with plugins last) and the threads."""
    return [
        "export PYTHONSAFEPATH=1",
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}:{shlex.quote(os.getcwd())}",
        *(f"export {name}={config.threads}" for name in THREAD_VARIABLES),
    ]
