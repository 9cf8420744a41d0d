"""How a run's processes ended: by the program, by the machine, or because they were told to. Imports no torch."""

import signal
from enum import StrEnum
from typing import NamedTuple

from attnzoo.report.status import last_line
from attnzoo.rundir import attempts
from attnzoo.rundir.folder import RunFolder

# Exit codes of attnzoo.worker, which imports torch.
DONE, REFUSED, LOST = 0, 2, 75
TOLD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Kind(StrEnum):
    """Who ended a run."""

    DONE = "done"
    FAILED = "failed"  # the program: it would fail again
    REFUSED = "refused"  # nothing was touched
    INTERRUPTED = "interrupted"
    MACHINE = attempts.MACHINE  # it may succeed elsewhere


class Outcome(NamedTuple):
    """Who ended a run, and why in a few words; for INTERRUPTED the name of the signal."""

    kind: Kind
    reason: str = ""


def judge(run: RunFolder, code: int, began: float) -> Outcome:
    """What became of processes that were started at `began` (seconds since the epoch) and ended with `code`.

    A process that is killed, or that lost another process of its run, fell to the machine; one that crashes, to the
    program. A process killed by signal n has the code -n or 128 + n.
    """
    status = run.read_status()
    state = status["state"] if status.get("heartbeat", 0) >= began else "pending"
    number = -code if code < 0 else code - 128
    if status["state"] == "done":
        return Outcome(Kind.DONE)
    if state == "failed":
        return Outcome(Kind.FAILED, str(status["error"]))
    if state == "interrupted":
        return Outcome(Kind.INTERRUPTED, str(status["signal"]))
    if number in TOLD:  # before it was ready to save
        return Outcome(Kind.INTERRUPTED, signal.Signals(number).name)
    if code == REFUSED:
        return Outcome(Kind.REFUSED, last_line(run.log))
    if code == LOST:
        return Outcome(Kind.MACHINE, "a process of the run was lost")
    if number in (signal.SIGKILL, signal.SIGHUP):
        return Outcome(Kind.MACHINE, f"killed by {signal.Signals(number).name}")
    return Outcome(Kind.FAILED, f"exit code {code}: {last_line(run.log)}")


def record(run: RunFolder, outcome: Outcome) -> None:
    """Write down what the run could not write itself. Raises OSError where nothing can be written."""
    state = run.read_status()["state"]
    if outcome.kind is Kind.MACHINE:
        attempts.record_end(run, attempts.MACHINE, outcome.reason)
    elif outcome.kind is Kind.FAILED and state != "failed":
        run.write_status(state="failed", error=outcome.reason)
        attempts.record_end(run, "failed", outcome.reason)
    elif outcome.kind is Kind.INTERRUPTED and state == "running":
        run.write_status(state="interrupted", signal=outcome.reason)
        attempts.record_end(run, "interrupted", outcome.reason)


def give_up(run: RunFolder, retries: int) -> str | None:
    """Mark a run as failed whose machine failed too often, and say why; None if it may be tried again."""
    reason = attempts.retries_exhausted(run, retries)
    if reason is not None:
        run.write_status(state="failed", error=reason)
        attempts.record_end(run, "failed", reason)
    return reason
