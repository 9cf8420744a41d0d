"""Writes metrics to metrics.jsonl, the source of truth, and to TensorBoard."""

import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from attnzoo.rundir.folder import RunFolder, atomic_write


class MetricsLogger:
    """Appends rows such as `{"step": 100, "train/loss": 3.2}` to metrics.jsonl and TensorBoard.

    `step` counts optimiser steps done. None and values that are not finite (AP of small objects if there are none) are
    omitted. On resume, the rows that follow the checkpoint of `resume_step` are dropped, because those steps run again;
    None starts an empty file.
    """

    def __init__(self, run: RunFolder, resume_step: int | None = None):
        rows = [] if resume_step is None else run.read_metrics()
        self.rows = [row for row in rows if resume_step is not None and _is_before_checkpoint(row, resume_step)]
        with atomic_write(run.metrics) as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)
        self._file = run.metrics.open("a", buffering=1)
        _wait_for_newer_event_file_name(run)
        self._tensorboard = SummaryWriter(str(run.tensorboard), purge_step=resume_step or 0)
        for row in self.rows:
            if row["step"] >= (resume_step or 0):
                self._add_scalars(row)

    def write(self, step: int, values: Mapping[str, float | None]) -> dict[str, Any]:
        """Append one row; returns it as written."""
        finite = {key: value for key, value in values.items() if value is not None and math.isfinite(value)}
        row = {"step": step, **finite}
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._add_scalars(row)
        return row

    def latest(self, key: str) -> float | None:
        """The latest value of `key`; None if there is none."""
        return next((row[key] for row in reversed(self.rows) if key in row), None)

    def close(self) -> None:
        """Flush and close both files."""
        self._file.close()
        self._tensorboard.close()

    def _add_scalars(self, row: dict[str, Any]) -> None:
        for key, value in row.items():
            if key != "step":
                self._tensorboard.add_scalar(key, value, row["step"])


def _wait_for_newer_event_file_name(run: RunFolder) -> None:
    """TensorBoard reads event files in the order of their names: second, host, process, number."""
    own = f".{os.getpid()}."
    while any(own not in path.name for path in run.tensorboard.glob(f"events.out.tfevents.{int(time.time())}.*")):
        time.sleep(0.05)


def _is_before_checkpoint(row: dict[str, Any], step: int) -> bool:
    """Whether a row was written before the checkpoint of `step`."""
    return row["step"] < step or (row["step"] == step and not any(key.startswith("val/") for key in row))
