"""Benchmark records: JSON files with the command, machine, versions and all samples."""

import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from attnzoo.environment import cpu_name, git_state, version
from attnzoo.errors import UserError
from attnzoo.files import JSON_ERRORS, read_json, reason
from attnzoo.rundir.folder import atomic_write

FORMAT_VERSION = 2
REQUIRED_KEYS = ("kind", "time", "command", "machine", "versions", "source", "rows")
RECORDED_ENV_PREFIXES = ("GLIBC_TUNABLES", "MALLOC_", "OMP_", "MKL_", "KMP_", "THP_", "ATTNZOO_SIMD", "ATEN_")


def header(kind: str, device: torch.device, packages: list[str]) -> dict[str, Any]:
    """Metadata of a record: command, machine, and the versions of Python, torch and `packages`."""
    environment = {name: value for name, value in sorted(os.environ.items()) if name.startswith(RECORDED_ENV_PREFIXES)}
    return {
        "format": FORMAT_VERSION,
        "kind": kind,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "cuda": torch.version.cuda,
            "environment": environment,
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", *packages)}},
        "source": git_state(),
    }


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, atomically."""
    with atomic_write(path) as file:
        json.dump(record, file, indent=1)
        file.write("\n")


def read(path: Path) -> dict[str, Any]:
    """A record from its file. Raises UserError if the file is not a record of this format."""
    try:
        record = read_json(path)
    except JSON_ERRORS as error:
        raise UserError(f"{path}: not a benchmark record ({reason(error)})") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT_VERSION:
        raise UserError(f"{path}: not a benchmark record of format {FORMAT_VERSION}")
    if missing_keys := [key for key in REQUIRED_KEYS if key not in record]:
        raise UserError(f"{path}: benchmark record without {', '.join(missing_keys)}")
    return record
