"""Asking SLURM and telling it: jobs and their states, cancelling, requeueing. Needs nothing but SLURM's commands."""

import os
import shutil
import subprocess
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from attnzoo.errors import UserError

SECONDS = 30  # the longest wait for an answer
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


class Unreachable(UserError):
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
    arrays = sorted({whole(job) for job in ids})
    found = {job.id: job for job in _queue(["--jobs", ",".join(arrays)])}
    forgotten = sorted({whole(job) for job in ids if job not in found})
    return {job.id: job for job in _accounted(forgotten)} | found


def mine() -> list[Job]:
    """All jobs of this user that squeue knows. Raises Unreachable."""
    return _queue(["--me"])


def is_running(job: str) -> bool:
    """Whether SLURM lets the job run: not while it ends it, for whatever reason."""
    return _details(job).get("JobState") == "RUNNING"


def was_cancelled(job: str) -> bool:
    """Whether SLURM is ending the job for good, before its time."""
    found = _details(job)
    requeued = int(found.get("Restarts", 0)) > int(os.environ.get("SLURM_RESTART_COUNT", 0))
    return found.get("JobState") in ("CANCELLED", "COMPLETING") and not requeued and found.get("Reason") != "TimeLimit"


def end_time(job: str) -> str:
    """When the job's time ends, as 2026-11-21T08:00:00 by the local clock; "" if SLURM does not say."""
    answer = _ask(["squeue", "--noheader", "--array", "--jobs", job, "--format=%e"])
    return answer.stdout.strip() if answer.returncode == 0 else ""


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs or tasks; those that have ended are passed over. Raises Unreachable."""
    for start in range(0, len(ids), 500):  # a command line has an end
        answer = _ask(["scancel", "--quiet", *ids[start : start + 500]])
        if answer.returncode:
            raise Unreachable(f"scancel: {_reason(answer)}")


def requeue(job: str, exclude: Iterable[str] = ()) -> None:
    """Put a running job back into the queue, kept off the nodes `exclude`; ends the caller if it belongs to the job.

    Raises Unreachable if SLURM refuses.
    """
    answer = _ask(["scontrol", "requeue", job])
    if answer.returncode:
        raise Unreachable(f"scontrol requeue: {_reason(answer)}")
    if nodes := ",".join(exclude):
        _ask(["scontrol", "update", f"JobId={job}", f"ExcNodeList={nodes}"])  # else it may start there again, no worse


def usable_nodes(partition: str) -> set[str]:
    """The nodes of a partition that are up."""
    states = "idle,allocated,mixed,completing"
    answer = _ask(["sinfo", "--noheader", "--Node", "--partition", partition, "--states", states, "--format=%N"])
    return set(answer.stdout.split())


def refusal(script: str) -> str | None:
    """Why SLURM would not take this batch script, or None if it would. Submits nothing. Raises Unreachable."""
    answer = _ask(["sbatch", "--test-only"], script)
    if answer.returncode == 0:
        return None
    words = _reason(answer).removeprefix("sbatch: error: ").removeprefix("allocation failure: ")
    if "contact slurm controller" in words:
        raise Unreachable(f"SLURM does not answer: {words}")
    return words


def whole(job: str) -> str:
    """The id of the array that a task belongs to, or the job's own."""
    return job.partition("_")[0]


def _details(job: str) -> dict[str, str]:
    """What scontrol shows of a job; nothing if SLURM does not know it."""
    answer = _ask(["scontrol", "show", "job", "--oneliner", job])
    return dict(field.split("=", 1) for field in answer.stdout.split() if "=" in field)


def _queue(which: Sequence[str]) -> list[Job]:
    answer = _ask(["squeue", "--noheader", "--array", "--states=all", f"--format={QUEUE_FIELDS}", *which])
    if answer.returncode and "Invalid job id" not in answer.stderr:  # what one gets for a single job long gone
        raise Unreachable(f"squeue: {_reason(answer)}")
    return [Job(*line.split("|", 5)) for line in answer.stdout.splitlines()]


def _accounted(ids: Collection[str]) -> list[Job]:
    """What the accounting knows; nothing where there is none."""
    if not ids or shutil.which("sacct") is None:
        return []
    fields = ["--noheader", "--parsable2", "--allocations", "--format=JobID,State,NodeList"]
    answer = _ask(["sacct", *fields, "--jobs", ",".join(ids)])
    rows = [line.split("|") for line in answer.stdout.splitlines()] if answer.returncode == 0 else []
    return [Job(job, state.split()[0], nodes) for job, state, nodes in rows]  # "CANCELLED by 1000"


def _ask(command: Sequence[str], given: str | None = None) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command, input=given, text=True, capture_output=True, timeout=SECONDS, env=os.environ | {"LC_ALL": "C"}
        )
    except FileNotFoundError:
        raise Unreachable(f"{command[0]} is missing: is this a machine of a SLURM cluster?") from None
    except subprocess.TimeoutExpired:
        raise Unreachable(f"SLURM does not answer: {command[0]} took more than {SECONDS} s") from None


def _reason(answer: "subprocess.CompletedProcess[str]") -> str:
    lines = [line for line in answer.stderr.splitlines() if line.strip() and not line.startswith("Try ")]
    return lines[-1].strip() if lines else f"exit code {answer.returncode}"
