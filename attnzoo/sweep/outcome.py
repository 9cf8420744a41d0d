"""Why a run's processes ended: an error in the code, a failure of the machine, or a signal. Imports no torch."""

import signal
from enum import StrEnum
from typing import NamedTuple

from attnzoo.engine.interrupt import STOP_SIGNALS
from attnzoo.errors import ExitCode, UserError
from attnzoo.report.status import last_line
from attnzoo.rundir import attempts
from attnzoo.rundir.folder import RunFolder


class ExitKind(StrEnum):
    """Why a run ended."""

    DONE = "done"
    FAILED = "failed"  # an error in the code: not retried
    NOT_STARTED = "not started"  # invalid input, or another process holds the lock; nothing was changed
    INTERRUPTED = "interrupted"
    CORRUPT = "corrupt"  # its status cannot be read, so that nothing can be recorded
    MACHINE_FAILURE = attempts.MACHINE  # retried


class Outcome(NamedTuple):
    """How a run ended and the reason in a few words; for INTERRUPTED the name of the signal."""

    kind: ExitKind
    reason: str = ""


def classify(run: RunFolder, returncode: int, start_time: float) -> Outcome:
    """The outcome of processes that started at `start_time` (seconds since the epoch) and ended with `returncode`.

    SIGKILL and a lost peer are failures of the machine; crashes are errors in the code. A process killed by
    signal n has the return code -n or 128 + n.
    """
    try:
        status = run.read_status()
    except UserError as error:
        return Outcome(ExitKind.CORRUPT, str(error))
    state = status["state"] if status.get("heartbeat", 0) >= start_time else "pending"
    signum = -returncode if returncode < 0 else returncode - 128
    if status["state"] == "done":
        return Outcome(ExitKind.DONE)
    if state == "failed":
        return Outcome(ExitKind.FAILED, str(status["error"]))
    if state == "interrupted":
        return Outcome(ExitKind.INTERRUPTED, str(status["signal"]))
    if signum in STOP_SIGNALS:  # before the worker could handle it
        return Outcome(ExitKind.INTERRUPTED, signal.Signals(signum).name)
    if returncode == ExitCode.USER_ERROR:
        return Outcome(ExitKind.NOT_STARTED, last_line(run.log))
    if returncode == ExitCode.PEER_LOST:
        return Outcome(ExitKind.MACHINE_FAILURE, "lost a process of the run")
    if signum == signal.SIGKILL:
        return Outcome(ExitKind.MACHINE_FAILURE, "killed by SIGKILL")
    return Outcome(ExitKind.FAILED, f"exit code {returncode}: {last_line(run.log)}")


def record(run: RunFolder, outcome: Outcome) -> None:
    """Record an outcome that the worker could not record itself. Raises OSError if the folder cannot be written."""
    if outcome.kind is ExitKind.CORRUPT:
        return
    state = run.read_status()["state"]
    if outcome.kind is ExitKind.MACHINE_FAILURE:
        attempts.record_end(run, attempts.MACHINE, outcome.reason)
    elif outcome.kind is ExitKind.FAILED and state != "failed":
        run.write_status(state="failed", error=outcome.reason)
        attempts.record_end(run, "failed", outcome.reason)
    elif outcome.kind is ExitKind.INTERRUPTED and state == "running":
        run.write_status(state="interrupted", signal=outcome.reason)
        attempts.record_end(run, "interrupted", outcome.reason)


def fail_if_exhausted(run: RunFolder, retries: int) -> str | None:
    """Mark the run as failed if its retries are used up, and return the reason; None if it can be retried."""
    reason = attempts.retries_exhausted(run, retries)
    if reason is not None:
        run.write_status(state="failed", error=reason)
        attempts.record_end(run, "failed", reason)
    return reason
