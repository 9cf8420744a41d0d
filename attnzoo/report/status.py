"""Where the runs of a sweep are: what the ledger, the scheduler and each run's own files say, put together.

Reads only; imports neither torch nor omegaconf, so that it answers at once for hundreds of runs.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnzoo import slurm
from attnzoo.errors import UserError
from attnzoo.rundir import attempts, process
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.ledger import FILENAME, JOB_COMMENT_PREFIX, Ledger, job_id_of
from attnzoo.slurm import Job

DEAD_SECONDS = 300  # a running job whose run has given no sign of life for so long hangs
INTERRUPT_REASONS = {"TIMEOUT": "its time ran out", "PREEMPTED": "preempted", "NODE_FAIL": "its node failed"}
TAIL_BYTES = 65536


@dataclass(frozen=True)
class RunStatus:
    """One run. `state` is pending, running, done, failed, dead, interrupted or cancelled; `note` says why.

    `active` runs wait or work and need nobody. `missing` ones were never handed to anybody. `requeued` counts its
    starts after the first, `machine_failures` those that its machine caused; `left` is an estimate in seconds.
    """

    name: str
    state: str
    note: str = ""
    active: bool = False
    missing: bool = False
    step: int | None = None
    steps: int | None = None
    ap: float | None = None
    top1: float | None = None
    left: float | None = None
    requeued: int = 0
    machine_failures: int = 0
    steps_lost: int = 0
    job: str | None = None
    host: str | None = None
    heartbeat: float | None = None


def sweep_status(sweep: Path) -> list[RunStatus]:
    """The runs of the sweep in `sweep`, in the order of its ledger.

    Raises UserError where there is no ledger, and slurm.SlurmUnavailable if jobs are out and SLURM does not answer.
    """
    ledger = Ledger(sweep)
    if not ledger.path.exists():
        reason = f"no {FILENAME} in it" if sweep.is_dir() else "no such folder"
        raise UserError(f"{sweep}: {reason}; expected the folder of a sweep, such as runs/ablate_points")
    content = ledger.read()
    resolve_job_ids(ledger, content)
    submitted = {name: job_id_of(content, name) for name in content["runs"]}
    unfinished = {name for name in content["runs"] if RunFolder(sweep / name).read_status()["state"] != "done"}
    found = slurm.jobs({job for name, job in submitted.items() if job and name in unfinished})
    here = _launcher_is_alive(content.get("local"))
    return [
        _state(RunFolder(sweep / name), entry, submitted[name], found.get(submitted[name] or ""), here)
        for name, entry in content["runs"].items()
    ]


def resolve_job_ids(ledger: Ledger, content: dict[str, Any]) -> None:
    """Fill in the jobs of submissions whose submitting process did not live to note them. Raises Unreachable."""
    unknown = [number for number, submission in content["submissions"].items() if submission["job"] is None]
    if not unknown:
        return
    by_comment = {job.comment: slurm.array_job_id(job.id) for job in slurm.user_jobs()}
    for number in unknown:
        comment = f"{JOB_COMMENT_PREFIX}{ledger.submission_folder(number).resolve()}"
        content["submissions"][number]["job"] = by_comment.get(comment)


def _state(run: RunFolder, entry: Mapping[str, Any], job_id: str | None, job: Job | None, here: bool) -> RunStatus:
    status, tried, heartbeat = run.read_status(), attempts.read(run), run.heartbeat()
    state, note = _resolve_state(run, status, entry, job, here)
    own = status["state"] == "running"
    return RunStatus(
        run.path.name,
        state,
        note,
        active=state == "running" or (state == "pending" and (job is not None or here)),
        missing=state == "pending" and job is None and not here,
        step=status.get("step"),
        steps=status.get("steps"),
        ap=status.get("AP"),
        top1=status.get("top1"),
        left=status.get("eta") if own and state == "running" else None,
        requeued=max(len(tried) - 1, 0),
        # the last start of a run that is done says so itself a moment after the status does
        machine_failures=sum(one.is_machine_failure for one in (tried[:-1] if own or state == "done" else tried)),
        steps_lost=sum(one.lost for one in tried),
        job=job_id,
        host=status.get("host") if own else None,
        heartbeat=heartbeat,
    )


def _resolve_state(
    run: RunFolder, status: Mapping[str, Any], entry: Mapping[str, Any], job: Job | None, here: bool
) -> tuple[str, str]:
    """(state, note). The run's own word that it is done counts above all, then the scheduler's on what is active."""
    own = status["state"]
    if own == "done":
        return "done", ""
    if job is not None and job.active:
        return _active_state(run, status, job)
    if own == "failed":
        return "failed", str(status["error"])
    if "cancelled" in entry or own == "cancelled" or (job is not None and job.state == "CANCELLED"):
        return "cancelled", ""
    if own == "interrupted":
        return "interrupted", str(status["signal"])
    if job is not None and job.state in INTERRUPT_REASONS:
        return "interrupted", INTERRUPT_REASONS[job.state]
    if job is not None:
        return "failed", f"{job.state.lower()}: {last_log_line(run, entry)}"
    if own == "running":
        return ("running", "") if _is_alive(run, status) else ("dead", _heartbeat_age(run))
    return "pending", "waits for its turn" if here else "not submitted"


def _active_state(run: RunFolder, status: Mapping[str, Any], job: Job) -> tuple[str, str]:
    if job.waiting:
        return "pending", job.reason if job.reason != "None" else ""  # which SLURM says before it has looked
    if status["state"] != "running" or status.get("job") != job.id:
        return "running", "starts" if job.state != "COMPLETING" else "ends"
    heartbeat = run.heartbeat()
    if heartbeat is not None and time.time() - heartbeat > DEAD_SECONDS:
        return "dead", _heartbeat_age(run)
    return "running", f"{job.left} until its time limit"


def _is_alive(run: RunFolder, status: Mapping[str, Any]) -> bool:
    """Whether a run that no job has is being trained: by its process here, by its signs of life elsewhere."""
    if status.get("host") == attempts.node_name():
        return process.is_running_here(status)
    return time.time() - (run.heartbeat() or 0) < DEAD_SECONDS


def _heartbeat_age(run: RunFolder) -> str:
    return f"no sign of life for {time.time() - (run.heartbeat() or 0):.0f} s"


def _launcher_is_alive(launcher: Mapping[str, Any] | None) -> bool:
    """Whether another process works on the sweep on this machine."""
    return launcher is not None and launcher["pid"] != os.getpid() and process.is_running_here(launcher)


def last_log_line(run: RunFolder, entry: Mapping[str, Any]) -> str:
    """The last line of the run's log, or of its job's where the run wrote none."""
    logs = [run.log]
    if "submission" in entry:
        logs += sorted((run.path.parent / "slurm" / entry["submission"]).glob(f"*_{entry['task']}_0_log.out"))
        logs += sorted((run.path.parent / "slurm" / entry["submission"]).glob("[0-9]*_0_log.out"))[:1]
    return next(filter(None, map(last_line, logs)), "it wrote nothing")


def last_line(log: Path) -> str:
    """The last line of a log that says something; "" if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - TAIL_BYTES, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def counts(states: Sequence[RunStatus]) -> dict[str, int]:
    """How many runs are in each state, the most advanced first."""
    order = ("done", "running", "pending", "interrupted", "cancelled", "dead", "failed")
    return {state: count for state in order if (count := sum(one.state == state for one in states))}
