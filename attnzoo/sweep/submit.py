"""Submits a sweep to SLURM: one job array for each group of runs that need the same resources."""

import io
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from attnzoo import slurm
from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.slurm import parse_minutes, tasks_per_node
from attnzoo.errors import UserError, plural
from attnzoo.paths import real_path
from attnzoo.report.status import UNCERTAIN_SECONDS
from attnzoo.rundir.folder import atomic_write
from attnzoo.rundir.ledger import job_comment
from attnzoo.rundir.rebuild import JOB, JOBS
from attnzoo.sweep.expand import RunSpec
from attnzoo.sweep.folder import SweepFolder
from attnzoo.sweep.pickles import job_function
from attnzoo.sweep.snapshot import create_snapshot
from attnzoo.sweep.workers import THREAD_VARIABLES

ARRAY_SIZE = 1000  # SLURM's default MaxArraySize allows one more
DRY_RUN_ID = "NUMBER"  # of a submission, in the scripts of a dry run
# In the name of a log sbatch replaces %j and the like; PYTHONPATH cannot hold a colon.
FORBIDDEN = {"%": "a percent sign", "\\": "a backslash", ":": "a colon", "\n": "a line break"}

# `scancel --full` sends its signal to the shell too, which would end the job; it waits for the supervisor instead.
TRAP = "trap : HUP INT QUIT USR1 USR2"


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

    @property
    def sbatch_options(self) -> set[str]:
        """The names of the options of sbatch that the script sets."""
        return {*self.options, *self.options["additional_parameters"]}

    def executor_options(self, folder: Path, code: Path) -> dict[str, Any]:
        """The options of one submission, with its folder and the snapshot of the code."""
        pickle = shlex.join([sys.executable, "-m", "attnzoo.sweep.pickles", str(folder)])
        setup = [TRAP, *self.options["setup"], *_environment(self.runs[0].config, code), f"{pickle} || exit"]
        no_limit = {"array_parallelism": ARRAY_SIZE}  # submitit's default is 256
        return no_limit | self.options | {"comment": job_comment(folder), "setup": setup}

    def script(self, folder: Path, code: Path) -> str:
        """The batch script to be submitted."""
        # private: submitit has no public way to a script without submitting it, and its executor needs srun to be made
        from submitit.slurm.slurm import _make_sbatch_string

        command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
        num_jobs = len(self.runs) if len(self.runs) > 1 else None
        return str(_make_sbatch_string(command, folder, map_count=num_jobs, **self.executor_options(folder, code)))


def group_by_resources(runs: Sequence[RunSpec]) -> list[JobGroup]:
    """Groups of runs that need the same resources and fit into one job array, in the order of their first runs."""
    groups: dict[str, list[RunSpec]] = {}
    for run in runs:
        key = json.dumps([_options(run.config), run.config.threads, run.config.processes])
        groups.setdefault(key, []).append(run)
    arrays = [group[i : i + ARRAY_SIZE] for group in groups.values() for i in range(0, len(group), ARRAY_SIZE)]
    return [JobGroup(array, _options(array[0].config)) for array in arrays]


def check(groups: Sequence[JobGroup], folder: SweepFolder, validate: bool = True) -> None:
    """Check the paths, and `validate` the batch scripts with `sbatch --test-only`.

    Raises UserError with SLURM's message, and for folders whose names SLURM or the shell would read otherwise.
    """
    for key, path in (("output", real_path(folder.path)), ("", Path.cwd())):
        if found := next((text for character, text in FORBIDDEN.items() if character in str(path)), None):
            where = "output folder" if key else "current folder"
            raise UserError(f"{where} {path}: with SLURM its path may not contain {found}", key=key or ())
    if ignored := sorted({name for group in groups for name in slurm.ignored_variables(group.sbatch_options)}):
        print(f"{', '.join(ignored)}: ignored; set keys of slurm, or slurm.options, instead", file=sys.stderr)
    for group in groups if validate else ():
        submission = folder.ledger.submission_folder(DRY_RUN_ID).resolve()
        if error := slurm.rejection(group.script(submission, submission.parent / "code"), group.sbatch_options):
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
    code: Path
    previous: Mapping[str, Mapping[str, Any]]


def snapshot(runs: Sequence[RunSpec], folder: SweepFolder) -> Path:
    """The snapshot of the code for the jobs of these runs."""
    plugins = {plugin for run in runs for plugin in run.config.plugins}
    return create_snapshot((folder.path / "slurm" / "code").resolve(), sorted(plugins))


def reserve(groups: Sequence[JobGroup], folder: SweepFolder, content: dict[str, Any], code: Path) -> list[Submission]:
    """Write submissions of `groups` into the `content` of the ledger, and create their folders.

    A submission is in the ledger before sbatch runs, and its job is found by its comment: a crash of this process
    neither loses a run nor submits it twice. Call it within the `update` of the ledger that decides what is missing.
    """
    submissions = []
    for group in groups:
        number, now = _create_folder(folder), time.time()
        names = [run.folder.path.name for run in group.runs]
        submissions.append(Submission(number, group, code, {name: dict(content["runs"][name]) for name in names}))
        content["submissions"][number] = {"job": None, "runs": names, "time": now}
        for task, name in enumerate(names):
            entry = content["runs"][name]
            entry |= {"attempts": entry.get("attempts", 0) + 1, "submission": number, "task": task}
            entry.pop("cancelled", None)
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

    Raises UserError with sbatch's message, and what was submitted before, if it rejects one; that and the later ones
    are taken out of the ledger. If SLURM may have accepted it all the same, it stays there.
    """
    try:
        for submission in submissions:  # they are in the ledger: one that lacks any is old
            _write_jobs(submission, folder)
    except OSError:
        _release(submissions, folder)
        raise
    lines = list[str]()
    for index, submission in enumerate(submissions):
        try:
            lines.append(_submit(submission, folder))
        except slurm.SubmissionUncertain as error:
            _release(submissions[index + 1 :], folder)
            number = plural(len(submission.group.runs), "run")
            hint = f"SLURM may have accepted the job of {number} all the same: `status` shows it if so; if not, "
            message = f"{error}; {hint}submit again after {UNCERTAIN_SECONDS // 60} minutes"
            raise UserError("; before it: ".join([message, *lines]), key="slurm") from None
        except UserError as error:
            _release(submissions[index:], folder)
            raise UserError("; before it: ".join([str(error), *lines]), key="slurm") from None
    return lines


def _write_jobs(submission: Submission, folder: SweepFolder) -> None:
    jobs = [_job(run) for run in submission.group.runs]
    with atomic_write(folder.ledger.submission_folder(submission.number).resolve() / JOBS) as file:
        json.dump({"code": str(submission.code), "time": time.time(), "jobs": jobs}, file, indent=1)


def _submit(submission: Submission, folder: SweepFolder) -> str:
    path = folder.ledger.submission_folder(submission.number).resolve()
    try:
        job = _sbatch(submission, path)
    except slurm.SlurmUnavailable as error:
        job = ""
        with suppress(slurm.SlurmUnavailable):
            job = slurm.jobs_by_comment().get(job_comment(path), "")
        if not job:
            raise error
    with atomic_write(path / JOB) as file:
        file.write(f"{job}\n")
    with folder.ledger.update() as content:
        content["submissions"][submission.number]["job"] = job
    return f"submitted {plural(len(submission.group.runs), 'run')} as job {job} ({path})"


def _sbatch(submission: Submission, path: Path) -> str:
    """Submit through submitit; returns the id of the job or of its array.

    Raises SlurmUnavailable with sbatch's message if it was rejected, SubmissionUncertain if that is not known.
    """
    try:
        executor = submitit.SlurmExecutor(path)
    except RuntimeError as error:  # without srun
        raise slurm.SlurmUnavailable(f"submitit: {error}") from None
    group = submission.group
    executor.update_parameters(**group.executor_options(path, submission.code))
    try:
        with (
            slurm.submission_environment(group.sbatch_options),
            redirect_stderr(io.StringIO()),
        ):  # sbatch's message, which submitit also raises
            job = executor.submit_array([job_function(path) for _ in group.runs])[0]
    except Exception as error:
        # without an exit code of sbatch: its answer cannot be read, or the pickles cannot be renamed
        if isinstance(error, FailedJobError) and isinstance(error.__cause__, CalledProcessError):
            raise slurm.submission_error(error.__cause__) from None
        raise slurm.SubmissionUncertain(f"submitit: {' '.join(str(error).split())}") from None
    return slurm.array_job_id(job.job_id)


def _release(submissions: Sequence[Submission], folder: SweepFolder) -> None:
    """Take submissions that SLURM does not have out of the ledger."""
    with folder.ledger.update() as content:
        for submission in submissions:
            content["submissions"].pop(submission.number, None)
            for name, entry in submission.previous.items():
                if content["runs"].get(name, {}).get("submission") == submission.number:
                    content["runs"][name] = dict(entry)
            path = folder.ledger.submission_folder(submission.number)
            for file in [path / JOBS, *path.glob("*.pkl")]:
                file.unlink(missing_ok=True)


def _job(run: RunSpec) -> dict[str, str | int]:
    """What the supervisor of a run needs to know."""
    config = run.config
    retries = config.retries if config.slurm.retries is None else config.slurm.retries
    folder = str(real_path(run.folder.path))
    return {"run": folder, "nodes": config.slurm.nodes, "processes": config.processes, "retries": retries}


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
