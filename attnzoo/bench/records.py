"""What stands at the head of every file of results, and the table as which they are shown."""

import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from attnzoo.environment import cpu_name, git_state, version
from attnzoo.errors import UserError
from attnzoo.rundir.folder import atomic_write

FORMAT = 1
KEYS = ("kind", "time", "command", "machine", "versions", "source", "rows")
TUNED_BY = ("GLIBC_TUNABLES", "MALLOC_", "OMP_", "MKL_", "KMP_", "THP_", "ATTNZOO_SIMD")  # beginnings of variables


@dataclass(frozen=True)
class Rows:
    """A table: `header` and rows of text; the first `labels` columns are names, the others numbers."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    labels: int
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The table for a page."""
        rules = ["---"] * self.labels + ["--:"] * (len(self.header) - self.labels)
        lines = [f"| {' | '.join(cells)} |" for cells in (self.header, rules, *self._sparse())]
        return "\n".join([f"### {self.title}", "", *lines, "", *(f"- {note}" for note in self.notes), ""])

    def show(self, console: Console) -> None:
        """The table for a terminal."""
        table = Table(*self.header, title=self.title, title_justify="left", box=SIMPLE)
        for index, column in enumerate(table.columns):
            column.overflow = "fold"
            column.justify = "left" if index < self.labels else "right"
        for row in self._sparse():
            table.add_row(*row)
        console.print(table)
        for note in self.notes:
            console.print(note, markup=False, soft_wrap=True)

    def _sparse(self) -> Iterator[tuple[str, ...]]:
        """The rows, labels left out that the row above has too: what changes stands out."""
        above: tuple[str, ...] = ()
        for row in self.rows:
            same = next((i for i in range(self.labels - 1) if row[: i + 1] != above[: i + 1]), self.labels - 1)
            yield ("",) * same + row[same:]
            above = row


def header(kind: str, device: torch.device, packages: list[str]) -> dict[str, Any]:
    """What a record starts with: command, machine, and the versions of Python, torch and `packages`."""
    return {
        "format": FORMAT,
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
            "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(TUNED_BY)},
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", *packages)}},
        "source": git_state(),
    }


def machine(record: dict[str, Any]) -> str:
    """The machine and the versions of a record in one sentence."""
    where, versions = record["machine"], record["versions"]
    device = f"{where['cpu']}, {where['threads']} of {where['cores']} threads"
    if where["device"] != "cpu":
        device = f"{where['device']} (host: {device})"
    commit = (record["source"] or {}).get("commit", "")[:9]
    found = versions | {"attnzoo": versions.get("attnzoo") or f"source {commit}"}
    return f"{device}; " + ", ".join(f"{name} {v or 'not installed'}" for name, v in found.items())


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, whole or not at all."""
    with atomic_write(path) as file:
        json.dump(record, file, indent=1)
        file.write("\n")


def read(path: Path) -> dict[str, Any]:
    """A record from its file. Raises UserError where there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: no record of a benchmark ({error})") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path}: no record of a benchmark of format {FORMAT}")
    if lacking := [key for key in KEYS if key not in found]:
        raise UserError(f"{path}: a record of a benchmark that lacks {', '.join(lacking)}")
    return found
