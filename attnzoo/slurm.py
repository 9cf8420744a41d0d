"""Jobs of SLURM: their states, cancelling, requeueing. Calls squeue, sacct, scontrol, scancel, sinfo and sbatch."""

import os
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from attnzoo.errors import UserError

COMMAND_TIMEOUT = 30  # seconds
QUEUE_FIELDS = "%i|%T|%N|%L|%r|%k"
# Of sbatch, where the job may have reached SLURM all the same.
UNCERTAIN = ("timed out", "zero bytes", "unexpected message", "communication", "connection reset", "send/recv")
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD", "SUSPENDED")
# Variables with these prefixes change what SLURM's commands do or answer, but for those of CONNECTION.
PREFIXES = ("SBATCH_", "SLURM_", "SLURMD_", "SRUN_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SCONTROL_")
CONNECTION = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_SACK_KEY", "SLURM_SACK_JWKS")
# Options of sbatch for which SBATCH_ACCOUNT and the like are a default: where jobs run, and on whose account.
WITH_DEFAULTS = ("account", "constraint", "partition", "qos", "reservation", "wckey")
RUNNING = ("RUNNING", "CONFIGURING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED")


@dataclass(frozen=True)
class Job:
    """A job, or a task of a job array, with the fields of squeue."""

    id: str
    state: str
    nodes: str = ""
    time_left: str = ""
    reason: str = ""
    comment: str = ""  # last: it may contain any character

    @property
    def waiting(self) -> bool:
        return self.state in WAITING

    @property
    def running(self) -> bool:
        return self.state in RUNNING

    @property
    def active(self) -> bool:
        return self.waiting or self.running


class SlurmUnavailable(UserError):
    """SLURM is not installed, does not answer, or rejects the request."""


class SubmissionUncertain(SlurmUnavailable):
    """sbatch failed, but SLURM may have accepted the job."""


def available() -> bool:
    """Whether SLURM's commands are installed."""
    return shutil.which("squeue") is not None


def jobs(ids: Collection[str]) -> dict[str, Job]:
    """The jobs and array tasks with these ids, without those that SLURM no longer knows.

    From squeue (pending, running and recently ended jobs), then from sacct if accounting is enabled. Raises
    SlurmUnavailable.
    """
    if not ids:
        return {}
    arrays = sorted({array_job_id(job) for job in ids})
    queued = {job.id: job for job in _squeue(["--jobs", ",".join(arrays)])}
    not_in_queue = sorted({array_job_id(job) for job in ids if job not in queued})
    return {job.id: job for job in _sacct(not_in_queue)} | queued


def user_jobs() -> list[Job]:
    """All jobs of this user in squeue. Raises SlurmUnavailable."""
    return _squeue(["--me"])


def answers() -> bool:
    """Whether SLURM's controller answers."""
    try:
        return " is UP" in _run(["scontrol", "ping"]).stdout
    except SlurmUnavailable:
        return False


def is_running(job: str) -> bool:
    """Whether the job is in state RUNNING."""
    return _show_job(job).get("JobState") == "RUNNING"


def was_cancelled(job: str) -> bool:
    """Whether the job was cancelled, neither requeued nor ended by its time limit."""
    fields = _show_job(job)
    requeued = int(fields.get("Restarts", 0)) > int(os.environ.get("SLURM_RESTART_COUNT", 0))
    ended = fields.get("JobState") in ("CANCELLED", "COMPLETING")
    return ended and not requeued and fields.get("Reason") != "TimeLimit"


def end_time(job: str) -> str:
    """The time limit of the job as 2026-11-21T08:00:00 in local time; "" if unknown."""
    result = _run(["squeue", "--noheader", "--array", "--jobs", job, "--format=%e"])
    return result.stdout.strip() if result.returncode == 0 else ""


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs or array tasks, ignoring those that have ended. Raises SlurmUnavailable."""
    for start in range(0, len(ids), 500):  # within ARG_MAX
        result = _run(["scancel", "--quiet", *ids[start : start + 500]])
        if result.returncode:
            raise SlurmUnavailable(f"scancel: {_error_message(result)}")


def requeue(job: str, exclude: Iterable[str] = ()) -> None:
    """Requeue a running job, excluding the nodes `exclude`; ends the caller if it belongs to the job.

    Raises SlurmUnavailable if SLURM rejects it.
    """
    result = _run(["scontrol", "requeue", job])
    if result.returncode:
        raise SlurmUnavailable(f"scontrol requeue: {_error_message(result)}")
    if nodes := ",".join(exclude):
        _run(["scontrol", "update", f"JobId={job}", f"ExcNodeList={nodes}"])  # best effort


def usable_nodes(partition: str) -> set[str]:
    """The nodes of a partition that are up."""
    states = "idle,allocated,mixed,completing"
    result = _run(["sinfo", "--noheader", "--Node", "--partition", partition, "--states", states, "--format=%N"])
    return set(result.stdout.split())


def rejection(script: str, options: Collection[str]) -> str | None:
    """Why `sbatch --test-only` rejects a batch script with these `options`; None if not. Raises SlurmUnavailable."""
    result = _run(["sbatch", "--test-only"], script, _sbatch_environment(options))
    if result.returncode == 0:
        return None
    message = _error_message(result).removeprefix("sbatch: error: ").removeprefix("allocation failure: ")
    if "contact slurm controller" in message or "fatal:" in message:  # such as no slurm.conf
        raise SlurmUnavailable(f"SLURM does not answer: {message}")
    return message


def submission_error(error: subprocess.CalledProcessError) -> SlurmUnavailable:
    """Why sbatch failed: SubmissionUncertain if SLURM may have accepted the job, else SlurmUnavailable."""
    message = _error_message(error).removeprefix("sbatch: error: ").removeprefix("Batch job submission failed: ")
    is_uncertain = error.returncode <= 0 or any(text in error.stderr.lower() for text in UNCERTAIN)
    return (SubmissionUncertain if is_uncertain else SlurmUnavailable)(f"sbatch: {message}")


def jobs_by_comment() -> dict[str, str]:
    """The ids of this user's jobs and arrays by their comments. Raises SlurmUnavailable.

    The newest of a comment: a sweep whose folder was deleted while it was queued, and submitted again, has two jobs.
    """
    ids = {(job.comment, array_job_id(job.id)) for job in user_jobs()}
    return dict(sorted(((comment, job) for comment, job in ids if job.isdecimal()), key=lambda item: int(item[1])))


def array_job_id(job: str) -> str:
    """The id of the array of a task `12_3`, or the id of a job `12`."""
    return job.partition("_")[0]


def _show_job(job: str) -> dict[str, str]:
    """The fields of `scontrol show job`; empty if SLURM does not know the job."""
    result = _run(["scontrol", "show", "job", "--oneliner", job])
    return dict(field.split("=", 1) for field in result.stdout.split() if "=" in field)


def _squeue(selection: Sequence[str]) -> list[Job]:
    result = _run(["squeue", "--noheader", "--array", "--states=all", f"--format={QUEUE_FIELDS}", *selection])
    if result.returncode and "Invalid job id" not in result.stderr:  # for a single job that ended long ago
        raise SlurmUnavailable(f"squeue: {_error_message(result)}")
    rows = [line.split("|", 5) for line in result.stdout.split("\n")]  # only there: paths may have other line breaks
    return [Job(*row) for row in rows if len(row) == 6]  # a comment may contain line breaks


def _sacct(ids: Collection[str]) -> list[Job]:
    """The jobs in the accounting database; none without one."""
    if not ids or shutil.which("sacct") is None:
        return []
    fields = ["--noheader", "--parsable2", "--allocations", "--format=JobID,State,NodeList,Comment"]
    result = _run(["sacct", *fields, "--jobs", ",".join(ids)])
    rows = [line.split("|", 3) for line in result.stdout.split("\n")] if result.returncode == 0 else []
    # a state may be "CANCELLED by 1000"; the comment is "" without AccountingStoreFlags=job_comment
    return [Job(row[0], row[1].split(" ")[0], row[2], comment="".join(row[3:])) for row in rows if len(row) >= 3]


def ignored_variables(options: Collection[str]) -> list[str]:
    """The SBATCH_* variables of the environment that a submission with these `options` of sbatch does not follow."""
    kept = _sbatch_environment(options)
    return sorted(name for name in os.environ if name.startswith("SBATCH_") and name not in kept)


@contextmanager
def submission_environment(options: Collection[str]) -> Iterator[None]:
    """Within it, sbatch follows the script, in which `options` are set, and jobs inherit nothing of another job.

    sbatch prefers SBATCH_* variables to what the script says: SBATCH_ARRAY_INX would change the tasks of an array.
    """
    before = dict(os.environ)
    kept = _sbatch_environment(options)
    for name in before.keys() - kept.keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ |= before


def _sbatch_environment(options: Collection[str]) -> dict[str, str]:
    names = [f"SBATCH_{option.upper()}" for option in WITH_DEFAULTS if option not in options]
    return _without_slurm({*CONNECTION, *names})


def _without_slurm(kept: Collection[str]) -> dict[str, str]:
    """The environment of this process without SLURM's variables, but for those `kept`."""
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(PREFIXES)}


def _run(
    command: Sequence[str], stdin: str | None = None, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    try:
        result = subprocess.run(
            command,
            input=None if stdin is None else os.fsencode(stdin),
            capture_output=True,
            timeout=COMMAND_TIMEOUT,
            env={**(_without_slurm(CONNECTION) if environment is None else environment), "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise SlurmUnavailable(f"{command[0]} is missing: is this a login node of a SLURM cluster?") from None
    except subprocess.TimeoutExpired:
        raise SlurmUnavailable(f"SLURM does not answer: {command[0]} took more than {COMMAND_TIMEOUT} s") from None
    # not as text, in which subprocess takes the \r of a path for a line break
    out, err = (output.decode(errors="replace") for output in (result.stdout, result.stderr))
    return subprocess.CompletedProcess(command, result.returncode, out, err)


def _error_message(result: "subprocess.CompletedProcess[str] | subprocess.CalledProcessError") -> str:
    lines = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("Try ")]
    return lines[-1].strip() if lines else f"exit code {result.returncode}"
