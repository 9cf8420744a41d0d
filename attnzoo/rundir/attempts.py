"""attempts.jsonl: every start of a run and how it ended, told by whatever was left to tell it.

A start and its end are two lines. A lost node writes no end; a process that died before it could train, no start.
Imports neither torch nor omegaconf.
"""

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from attnzoo.rundir.folder import RunFolder

MACHINE = "machine failure"  # the outcome that is tried again
# What the rows of each event hold, and of which type.
FIELDS: dict[str, dict[str, Any]] = {
    "start": {"step": int, "lost": int, "host": str, "job": str | None},
    "end": {"step": int, "outcome": str, "reason": str, "job": str | None},
}


@dataclass(frozen=True)
class Attempt:
    """One start. `step` is the checkpoint that it began from, `lost` the steps done before that it had to repeat.

    `outcome` is the run's state at its end or MACHINE; None if it never said, as when its node was lost.
    """

    step: int
    lost: int = 0
    host: str = ""
    job: str | None = None
    outcome: str | None = None
    reason: str = ""

    @property
    def is_machine_failure(self) -> bool:
        return self.outcome in (None, MACHINE)


def node_name() -> str:
    """The name of this machine, as SLURM or the system calls it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def job_id() -> str | None:
    """The SLURM job that this process belongs to, `12_3` for a task of an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")


def record_start(run: RunFolder, step: int, lost: int) -> None:
    """Record that this process starts the run from the checkpoint of `step`."""
    _append(run, {"event": "start", "step": step, "lost": lost, "host": node_name(), "job": job_id()})


def record_end(run: RunFolder, outcome: str, reason: str = "") -> None:
    """Record how the attempt ended."""
    _append(run, {"event": "end", "outcome": outcome, "reason": reason, "step": run.last_step(), "job": job_id()})


def read(run: RunFolder) -> list[Attempt]:
    """All attempts in order; the last has no outcome while it goes on. Lines that are no rows are passed over."""
    attempts: list[Attempt] = []
    has_open_start = False
    for row in _rows(run):
        if row["event"] == "start":
            attempts.append(Attempt(row["step"], row["lost"], row["host"], row["job"]))
            has_open_start = True
            continue
        start = attempts.pop() if has_open_start else Attempt(row["step"], job=row["job"])
        attempts.append(Attempt(start.step, start.lost, start.host, start.job, row["outcome"], row["reason"]))
        has_open_start = False
    return attempts


def retries_exhausted(run: RunFolder, retries: int) -> str | None:
    """Why a run that has ended is not to be tried again; None unless the machine failed too often.

    More than `retries` failures in a row, none of which got beyond the checkpoint that it began from, are too often.
    """
    step, row = run.last_step(), list[Attempt]()
    for attempt in reversed(read(run)):
        if not attempt.is_machine_failure or attempt.step != step:
            break
        row.append(attempt)
    if len(row) <= retries:
        return None
    hosts = ", ".join(dict.fromkeys(attempt.host or "?" for attempt in row))
    reason = row[0].reason or "no word"
    return f"the machine failed {len(row)} times in a row at step {step} (retries = {retries}; on {hosts}): {reason}"


def _append(run: RunFolder, row: dict[str, object]) -> None:
    line = json.dumps({"time": time.time()} | row) + "\n"
    with run.attempts.open("a+b") as file:
        if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) and file.read() != b"\n":
            line = "\n" + line  # a crash cut the last one off
        file.write(line.encode())


def _rows(run: RunFolder) -> list[dict[str, Any]]:
    rows = []
    if run.attempts.exists():
        for line in run.attempts.read_bytes().split(b"\n"):
            with suppress(ValueError):  # not JSON, or not text
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and _is_valid(row)]


def _is_valid(row: dict[str, Any]) -> bool:
    fields = FIELDS.get(str(row.get("event")))
    return fields is not None and all(key in row and isinstance(row[key], kind) for key, kind in fields.items())
