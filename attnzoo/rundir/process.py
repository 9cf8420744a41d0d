"""The identity of a process in files, which survives the reuse of process ids.

Imports neither torch nor omegaconf.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnzoo.rundir.attempts import node_name

STATE_FIELD, START_FIELD = 0, 19  # indices of the fields after the name in /proc/PID/stat


def current() -> dict[str, Any]:
    """The identity of the calling process."""
    return identity(os.getpid())


def identity(pid: int) -> dict[str, Any]:
    """The identity of a process of this machine: `host`, `pid`, and when it `started`, None if it has ended."""
    return {"host": node_name(), "pid": pid, "started": _start_time(pid)}


def is_running_here(process: Mapping[str, Any]) -> bool:
    """Whether the process with the identity `current()` runs on this machine now."""
    if process.get("host") != node_name() or process.get("started") is None:
        return False
    return process["started"] == _start_time(process.get("pid", 0))


def _start_time(pid: int) -> str | None:
    """Boot id of the machine and clock tick at which the process started; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[STATE_FIELD] == "Z" else f"{boot}:{fields[START_FIELD]}"
