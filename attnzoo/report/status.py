"""The status of a sweep, merged from its ledger, SLURM and the run folders.

Reads only. Imports neither torch nor omegaconf, so that it is fast for hundreds of runs.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attnzoo import slurm
from attnzoo.errors import UserError
from attnzoo.files import open_file
from attnzoo.paths import why_no_folder
from attnzoo.report.jobs import RunJobs, find_jobs
from attnzoo.rundir import attempts, process
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.ledger import FILENAME, Ledger, job_id_of, submission_of
from attnzoo.rundir.lock import is_training_here
from attnzoo.rundir.metrics import STATUS
from attnzoo.slurm import Job

DEAD_SECONDS = 300  # a running job without a heartbeat for this long counts as dead
UNCERTAIN_SECONDS = 120  # so long a job that sbatch did not confirm may still appear in SLURM's queue
UNCONFIRMED = "submitted, not yet confirmed by SLURM"
NOT_SUBMITTED = "not submitted"
INTERRUPT_REASONS = {"TIMEOUT": "time limit", "PREEMPTED": "preempted", "NODE_FAIL": "node failure"}
TAIL_BYTES = 65536


@dataclass(frozen=True)
class RunStatus:
    """The state of a run: pending, running, done, failed, dead, interrupted, cancelled or corrupt; `note` says why.

    `active`: queued or running. `missing`: neither started nor submitted. `restarts`: starts after the first.
    `machine_failures`: attempts that ended in a machine failure. `eta`: estimated seconds to the end. `in_queue`:
    whether SLURM has `job`, waiting or running. `other_job`: the job in the ledger, if that is another's now.
    `metrics`: the latest values, by name.
    """

    name: str
    state: str
    note: str = ""
    active: bool = False
    missing: bool = False
    step: int | None = None
    steps: int | None = None
    eta: float | None = None
    restarts: int = 0
    machine_failures: int = 0
    steps_lost: int = 0
    job: str | None = None
    in_queue: bool = False
    other_job: str | None = None
    host: str | None = None
    heartbeat: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepStatus:
    """The runs of a sweep; `problem`: why SLURM says nothing of their jobs, "" if it does."""

    runs: list[RunStatus]
    problem: str = ""


def read_status(sweep: Path) -> SweepStatus:
    """The runs of the sweep in `sweep`, by their folders alone if SLURM does not answer. Raises UserError as below."""
    ledger = existing_ledger(sweep)
    try:
        return SweepStatus(ledger_status(ledger, ledger.read()))
    except slurm.SlurmUnavailable as error:
        return SweepStatus(ledger_status(ledger, ledger.read(), ask_slurm=False), str(error))


def sweep_status(sweep: Path) -> list[RunStatus]:
    """The runs of the sweep in `sweep`, in the order of its ledger.

    Raises UserError without a ledger, and slurm.SlurmUnavailable if runs were submitted and SLURM does not answer.
    """
    ledger = existing_ledger(sweep)
    return ledger_status(ledger, ledger.read())


def existing_ledger(sweep: Path) -> Ledger:
    """The ledger of the sweep in `sweep`. Raises UserError without one."""
    ledger = Ledger(sweep)
    if not ledger.exists():
        reason = f"no {FILENAME} in it" if sweep.is_dir() else why_no_folder(sweep)
        raise UserError(f"{sweep}: {reason}; expected the folder of a sweep, such as runs/ablate_points")
    return ledger


def ledger_status(ledger: Ledger, content: dict[str, Any], ask_slurm: bool = True) -> list[RunStatus]:
    """The runs in the `content` of a ledger, whose job ids are corrected. Raises slurm.SlurmUnavailable."""
    read = {name: _read(RunFolder(ledger.sweep / name)) for name in content["runs"]}
    unfinished = [name for name, (status, corruption) in read.items() if corruption or status["state"] != "done"]
    jobs = find_jobs(ledger, content, unfinished) if ask_slurm else RunJobs()
    launched = "queued" if _launcher_is_alive(content.get("local")) else ""
    statuses = []
    for name, entry in content["runs"].items():
        run, job = RunFolder(ledger.sweep / name), jobs.own.get(name)
        status, corruption = read[name]
        if corruption:
            result = RunStatus(name, "corrupt", corruption, active=_is_training(run, status, job))
        else:
            expected = launched or _is_expected(content, name, ask_slurm)
            result = _run_status(run, status, entry, job, expected)
        other = jobs.others.get(name)
        job_id = None if other else job_id_of(content, name)
        if other and result.note == NOT_SUBMITTED:
            result = replace(result, note=f"{NOT_SUBMITTED}: job {other} is not of this sweep")
        in_queue = job is not None and job.active
        statuses.append(replace(result, job=job_id, in_queue=in_queue, other_job=other))
    return statuses


def _is_expected(content: dict[str, Any], name: str, ask_slurm: bool) -> str:
    """Why a job of the run may be in SLURM's queue although nothing was found there; "" if none can be."""
    submission = submission_of(content, name)
    if submission is None:
        return ""
    if not ask_slurm:
        return f"job {job_id_of(content, name) or 'unknown'}: SLURM does not answer"
    if submission["job"] is None and time.time() - submission.get("time", 0) < UNCERTAIN_SECONDS:
        return UNCONFIRMED
    return ""


def run_status(run: RunFolder) -> RunStatus:
    """The status of a run that is not in the ledger, from its folder alone."""
    status, corruption = _read(run)
    if corruption:
        return RunStatus(run.path.name, "corrupt", corruption, active=_is_training(run, status, None))
    return _run_status(run, status, {}, None, expected="")


def _read(run: RunFolder) -> tuple[dict[str, Any], str | None]:
    """The status of a run, "pending" if it cannot be read, and which file is corrupt."""
    corruption = run.corruption()
    try:
        return run.read_status(), corruption
    except UserError:
        return {"state": "pending"}, corruption


def _is_training(run: RunFolder, status: Mapping[str, Any], job: Job | None) -> bool:
    """Whether a corrupt run is still being trained, or about to be."""
    return job.active if job is not None else status["state"] == "running" and _is_alive(run, status)


def _run_status(
    run: RunFolder, status: Mapping[str, Any], entry: Mapping[str, Any], job: Job | None, expected: str
) -> RunStatus:
    """`expected`: why the run is about to start, such as a local launcher that runs the sweep; "" if it is not."""
    starts, heartbeat = attempts.read(run), run.heartbeat()
    state, note = _resolve_state(run, status, entry, job, expected)
    recorded_running = status["state"] == "running"
    # the end of the last attempt is recorded a moment after "done", and not yet while it runs
    ended = starts[:-1] if recorded_running or state == "done" else starts
    return RunStatus(
        run.path.name,
        state,
        note,
        active=state == "running" or (state == "pending" and (job is not None or bool(expected))),
        missing=state == "pending" and job is None and not expected,
        step=status.get("step"),
        steps=status.get("steps"),
        eta=status.get("eta") if recorded_running and state == "running" else None,
        restarts=max(len(starts) - 1, 0),
        machine_failures=sum(attempt.is_machine_failure for attempt in ended),
        steps_lost=sum(attempt.steps_lost for attempt in starts),
        host=status.get("host") if recorded_running else None,
        heartbeat=heartbeat,
        metrics={name: status[name] for name in STATUS.values() if name in status},
    )


def _resolve_state(
    run: RunFolder, status: Mapping[str, Any], entry: Mapping[str, Any], job: Job | None, expected: str
) -> tuple[str, str]:
    """(state, note). Precedence: recorded "done", then SLURM for active jobs, then the run's own status."""
    recorded = status["state"]
    if recorded == "done":
        return "done", ""
    if job is not None and job.active:
        return _active_state(run, status, job)
    if expected == UNCONFIRMED and recorded != "running":
        return "pending", expected
    if recorded == "failed":
        return "failed", str(status["error"])
    if "cancelled" in entry or recorded == "cancelled" or (job is not None and job.state == "CANCELLED"):
        return "cancelled", ""
    if recorded == "interrupted":
        return "interrupted", str(status["signal"])
    if job is not None and job.state in INTERRUPT_REASONS:
        return "interrupted", INTERRUPT_REASONS[job.state]
    if job is not None:
        return "failed", f"{job.state.lower()}: {last_log_line(run, entry)}"
    if recorded == "running":
        return ("running", "") if _is_alive(run, status) else ("dead", _heartbeat_age(run))
    return "pending", expected or (f"{run.status.name} is missing" if run.metrics.exists() else NOT_SUBMITTED)


def _active_state(run: RunFolder, status: Mapping[str, Any], job: Job) -> tuple[str, str]:
    if job.waiting:
        return "pending", job.reason if job.reason != "None" else ""  # SLURM's placeholder before it has scheduled
    if status["state"] != "running" or status.get("job") != job.id:
        return "running", "starting" if job.state != "COMPLETING" else "completing"
    heartbeat = run.heartbeat()
    if heartbeat is not None and time.time() - heartbeat > DEAD_SECONDS:
        return "dead", _heartbeat_age(run)
    return "running", f"{job.time_left} until time limit"


def _is_alive(run: RunFolder, status: Mapping[str, Any]) -> bool:
    """Whether a run without a job is being trained: by its process on this host, by its heartbeat on others."""
    if status.get("host") == attempts.node_name():
        return is_training_here(run, status)
    return time.time() - (run.heartbeat() or 0) < DEAD_SECONDS


def _heartbeat_age(run: RunFolder) -> str:
    return f"no heartbeat for {time.time() - (run.heartbeat() or 0):.0f} s"


def _launcher_is_alive(launcher: Mapping[str, Any] | None) -> bool:
    """Whether another process on this machine is running the sweep."""
    return launcher is not None and launcher["pid"] != os.getpid() and process.is_running_here(launcher)


def last_log_line(run: RunFolder, entry: Mapping[str, Any]) -> str:
    """The last line of the run's log, else of its job's log."""
    logs = [run.log]
    if "submission" in entry:
        logs += sorted((run.path.parent / "slurm" / entry["submission"]).glob(f"*_{entry['task']}_0_log.out"))
        logs += sorted((run.path.parent / "slurm" / entry["submission"]).glob("[0-9]*_0_log.out"))[:1]
    return next(filter(None, map(last_line, logs)), "no log output")


def last_line(log: Path) -> str:
    """The last line of a log that is not blank; "" if there is none."""
    try:
        with open_file(log) as file:
            file.seek(max(log.stat().st_size - TAIL_BYTES, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def counts(statuses: Sequence[RunStatus]) -> dict[str, int]:
    """The number of runs per state, the most advanced state first."""
    order = ("done", "running", "pending", "interrupted", "cancelled", "dead", "failed", "corrupt")
    return {state: count for state in order if (count := sum(status.state == state for status in statuses))}
