"""metrics.jsonl, the truth about a run, and its view in TensorBoard."""

import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from attnzoo.rundir.folder import RunFolder, atomic_write


class MetricsLogger:
    """Rows `{"step": 100, "train/loss": 3.2, …}`, appended to metrics.jsonl and to TensorBoard.

    `step` counts optimiser steps done. A value that does not exist (AP of small objects where there are none) is left
    out. Opening rewinds the file to the checkpoint of step `resume`, made after that step's training row and
    before its evaluation, so that what is then repeated is not there twice; None starts from an empty file.
    """

    def __init__(self, run: RunFolder, resume: int | None = None):
        self.rows = [] if resume is None else [row for row in run.read_metrics() if _is_before_checkpoint(row, resume)]
        with atomic_write(run.metrics) as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)
        self._file = run.metrics.open("a", buffering=1)
        _wait_for_newer_event_file_name(run)
        self._tensorboard = SummaryWriter(str(run.tensorboard), purge_step=resume or 0)
        for row in self.rows:
            if row["step"] >= (resume or 0):
                self._add_scalars(row)

    def write(self, step: int, values: Mapping[str, float | None]) -> dict[str, Any]:
        """Append one row; returns it as written."""
        kept = {key: value for key, value in values.items() if value is not None and math.isfinite(value)}
        row = {"step": step, **kept}
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._add_scalars(row)
        return row

    def latest(self, key: str) -> float | None:
        """The newest value of `key`."""
        return next((row[key] for row in reversed(self.rows) if key in row), None)

    def close(self) -> None:
        """Flush everything."""
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


def _is_before_checkpoint(row: dict[str, Any], resume: int) -> bool:
    """Whether a row was written before the checkpoint of step `resume` was."""
    return row["step"] < resume or (row["step"] == resume and not any(key.startswith("val/") for key in row))
