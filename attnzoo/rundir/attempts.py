"""attempts.jsonl: every start of a run and how it ended, written by the worker or its supervisor.

Start and end are separate lines. Either may be missing: the end after a node failure, the start after a crash before
training. Imports neither torch nor omegaconf.
"""

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from attnzoo.files import open_for_appending, read_bytes
from attnzoo.rundir.folder import RunFolder, has_types, parse_json

MACHINE = "machine failure"  # the outcome that is retried
# Fields and types of the rows of each event.
FIELDS: dict[str, dict[str, Any]] = {
    "start": {"time": int | float, "step": int, "steps_lost": int, "host": str, "job": str | None},
    "end": {"time": int | float, "step": int, "outcome": str, "reason": str, "job": str | None},
}


@dataclass(frozen=True)
class Attempt:
    """One start of a run, from the checkpoint of `step`; `steps_lost` steps after it had to be repeated.

    `environment`: what its results depend on besides the config, such as the sources; None if not recorded. `outcome`:
    the final state of the run, or MACHINE; None if not recorded, as after a node failure.
    """

    step: int
    steps_lost: int = 0
    host: str = ""
    job: str | None = None
    environment: Mapping[str, str] | None = None
    outcome: str | None = None
    reason: str = ""

    @property
    def is_machine_failure(self) -> bool:
        return self.outcome in (None, MACHINE)


def node_name() -> str:
    """The name of this node in SLURM, else the host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def job_id() -> str | None:
    """The SLURM job of this process, `12_3` for a task of an array; None outside of SLURM."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")


def record_start(run: RunFolder, step: int, steps_lost: int, environment: Mapping[str, str] | None = None) -> None:
    """Record that this process starts the run from the checkpoint of `step`, in this `environment`."""
    row = {"event": "start", "step": step, "steps_lost": steps_lost, "host": node_name(), "job": job_id()}
    _append(run, row | {"environment": environment})


def record_end(run: RunFolder, outcome: str, reason: str = "") -> None:
    """Record how the attempt ended."""
    _append(run, {"event": "end", "outcome": outcome, "reason": reason, "step": run.last_step(), "job": job_id()})


def read(run: RunFolder) -> list[Attempt]:
    """All attempts in order; a running one has no outcome. Malformed lines are skipped."""
    attempts: list[Attempt] = []
    has_open_start = False
    for row in _rows(run):
        if row["event"] == "start":
            environment = row.get("environment")
            if not isinstance(environment, dict) or not all(isinstance(value, str) for value in environment.values()):
                environment = None
            attempts.append(Attempt(row["step"], row["steps_lost"], row["host"], row["job"], environment))
            has_open_start = True
            continue
        start = attempts.pop() if has_open_start else Attempt(row["step"], job=row["job"])
        attempts.append(replace(start, outcome=row["outcome"], reason=row["reason"]))
        has_open_start = False
    return attempts


def environments(run: RunFolder) -> list[Mapping[str, str] | None]:
    """The environments in which the steps of a finished run were trained, in order; None for one not recorded.

    Attempts whose steps were lost do not count.
    """
    found: list[Mapping[str, str] | None] = []
    first_step = None
    for attempt in reversed(read(run)):
        if first_step is None or attempt.step < first_step:
            found.append(attempt.environment)
            first_step = attempt.step
    return [None, *reversed(found)] if first_step != 0 else found[::-1]


def hours(run: RunFolder) -> float | None:
    """The time of all attempts whose start and end are recorded, in hours; None if there is none."""
    total, start = 0.0, None
    for row in _rows(run):
        if row["event"] == "start":
            start = row["time"]
        elif start is not None:
            total, start = total + row["time"] - start, None
    return total / 3600 if total else None


def retries_exhausted(run: RunFolder, retries: int) -> str | None:
    """Why a run that has ended must not be retried; None if it may be.

    Retries are exhausted after more than `retries` consecutive machine failures without a new checkpoint.
    """
    step, failures = run.last_step(), list[Attempt]()
    for attempt in reversed(read(run)):
        if not attempt.is_machine_failure or attempt.step != step:
            break
        failures.append(attempt)
    if len(failures) <= retries:
        return None
    hosts = ", ".join(dict.fromkeys(attempt.host or "?" for attempt in failures))
    reason = failures[0].reason or "no reason recorded"
    return f"{len(failures)} machine failures in a row at step {step} (retries = {retries}; on {hosts}): {reason}"


def _append(run: RunFolder, row: dict[str, object]) -> None:
    line = json.dumps({"time": time.time()} | row) + "\n"
    with open_for_appending(run.attempts) as file:
        if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) and file.read() != b"\n":
            line = "\n" + line  # the last line was truncated by a crash
        file.write(line.encode())


def _rows(run: RunFolder) -> list[dict[str, Any]]:
    try:
        lines = read_bytes(run.attempts).split(b"\n")
    except OSError:  # none yet; a folder is reported by RunFolder.read
        return []
    return [row for line in lines if _is_valid(row := parse_json(line))]


def _is_valid(row: Any) -> bool:
    fields = FIELDS.get(str(row.get("event"))) if isinstance(row, dict) else None
    return fields is not None and has_types(row, fields, list(fields))
