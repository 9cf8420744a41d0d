"""Asking SLURM and telling it: jobs and their states, cancelling, requeueing. Needs nothing but SLURM's commands."""

import os
import shutil
import subprocess
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from attnzoo.errors import UserError

COMMAND_TIMEOUT = 30  # the longest wait for an answer
QUEUE_FIELDS = "%i|%T|%N|%L|%k|%r"
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD", "SUSPENDED")
RUNNING = ("RUNNING", "CONFIGURING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED")


@dataclass(frozen=True)
class Job:
    """A job, or one task of a job array, in SLURM's own words. `left` is what remains of its time."""

    id: str
    state: str
    nodes: str = ""
    left: str = ""
    comment: str = ""
    reason: str = ""

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
    """SLURM does not answer."""


def available() -> bool:
    """Whether SLURM's commands are installed."""
    return shutil.which("squeue") is not None


def jobs(ids: Collection[str]) -> dict[str, Job]:
    """The jobs and tasks of arrays with these ids.

    From squeue, which knows what waits, runs or has just ended, and for older ones from sacct where there is
    accounting; a job that neither knows is missing. Raises Unreachable.
    """
    if not ids:
        return {}
    arrays = sorted({array_job_id(job) for job in ids})
    found = {job.id: job for job in _squeue(["--jobs", ",".join(arrays)])}
    not_in_queue = sorted({array_job_id(job) for job in ids if job not in found})
    return {job.id: job for job in _sacct(not_in_queue)} | found


def user_jobs() -> list[Job]:
    """All jobs of this user that squeue knows. Raises Unreachable."""
    return _squeue(["--me"])


def is_running(job: str) -> bool:
    """Whether SLURM lets the job run: not while it ends it, for whatever reason."""
    return _show_job(job).get("JobState") == "RUNNING"


def was_cancelled(job: str) -> bool:
    """Whether SLURM is ending the job for good, before its time."""
    found = _show_job(job)
    requeued = int(found.get("Restarts", 0)) > int(os.environ.get("SLURM_RESTART_COUNT", 0))
    return found.get("JobState") in ("CANCELLED", "COMPLETING") and not requeued and found.get("Reason") != "TimeLimit"


def end_time(job: str) -> str:
    """When the job's time ends, as 2026-11-21T08:00:00 by the local clock; "" if SLURM does not say."""
    result = _run(["squeue", "--noheader", "--array", "--jobs", job, "--format=%e"])
    return result.stdout.strip() if result.returncode == 0 else ""


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs or tasks; those that have ended are passed over. Raises Unreachable."""
    for start in range(0, len(ids), 500):  # a command line has an end
        result = _run(["scancel", "--quiet", *ids[start : start + 500]])
        if result.returncode:
            raise SlurmUnavailable(f"scancel: {_error_message(result)}")


def requeue(job: str, exclude: Iterable[str] = ()) -> None:
    """Put a running job back into the queue, kept off the nodes `exclude`; ends the caller if it belongs to the job.

    Raises Unreachable if SLURM refuses.
    """
    result = _run(["scontrol", "requeue", job])
    if result.returncode:
        raise SlurmUnavailable(f"scontrol requeue: {_error_message(result)}")
    if nodes := ",".join(exclude):
        _run(["scontrol", "update", f"JobId={job}", f"ExcNodeList={nodes}"])  # else it may start there again, no worse


def usable_nodes(partition: str) -> set[str]:
    """The nodes of a partition that are up."""
    states = "idle,allocated,mixed,completing"
    result = _run(["sinfo", "--noheader", "--Node", "--partition", partition, "--states", states, "--format=%N"])
    return set(result.stdout.split())


def test_only(script: str) -> str | None:
    """Why SLURM would not take this batch script, or None if it would. Submits nothing. Raises Unreachable."""
    result = _run(["sbatch", "--test-only"], script)
    if result.returncode == 0:
        return None
    words = _error_message(result).removeprefix("sbatch: error: ").removeprefix("allocation failure: ")
    if "contact slurm controller" in words:
        raise SlurmUnavailable(f"SLURM does not answer: {words}")
    return words


def array_job_id(job: str) -> str:
    """The id of the array that a task belongs to, or the job's own."""
    return job.partition("_")[0]


def _show_job(job: str) -> dict[str, str]:
    """What scontrol shows of a job; nothing if SLURM does not know it."""
    result = _run(["scontrol", "show", "job", "--oneliner", job])
    return dict(field.split("=", 1) for field in result.stdout.split() if "=" in field)


def _squeue(which: Sequence[str]) -> list[Job]:
    result = _run(["squeue", "--noheader", "--array", "--states=all", f"--format={QUEUE_FIELDS}", *which])
    if result.returncode and "Invalid job id" not in result.stderr:  # what one gets for a single job long gone
        raise SlurmUnavailable(f"squeue: {_error_message(result)}")
    return [Job(*line.split("|", 5)) for line in result.stdout.splitlines()]


def _sacct(ids: Collection[str]) -> list[Job]:
    """What the accounting knows; nothing where there is none."""
    if not ids or shutil.which("sacct") is None:
        return []
    fields = ["--noheader", "--parsable2", "--allocations", "--format=JobID,State,NodeList"]
    result = _run(["sacct", *fields, "--jobs", ",".join(ids)])
    rows = [line.split("|") for line in result.stdout.splitlines()] if result.returncode == 0 else []
    return [Job(job, state.split()[0], nodes) for job, state, nodes in rows]  # "CANCELLED by 1000"


def _run(command: Sequence[str], stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command,
            input=stdin,
            text=True,
            capture_output=True,
            timeout=COMMAND_TIMEOUT,
            env=os.environ | {"LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise SlurmUnavailable(f"{command[0]} is missing: is this a machine of a SLURM cluster?") from None
    except subprocess.TimeoutExpired:
        raise SlurmUnavailable(f"SLURM does not answer: {command[0]} took more than {COMMAND_TIMEOUT} s") from None


def _error_message(result: "subprocess.CompletedProcess[str]") -> str:
    lines = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("Try ")]
    return lines[-1].strip() if lines else f"exit code {result.returncode}"
