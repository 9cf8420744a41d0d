"""Writes metrics to metrics.jsonl, the source of truth, and to TensorBoard, a view of it."""

import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from attnzoo.errors import UserError
from attnzoo.rundir.folder import RunFolder, atomic_write


class MetricsLogger:
    """Appends rows such as `{"step": 100, "train/loss": 3.2}` to metrics.jsonl and TensorBoard.

    `step` counts optimiser steps done. None and values that are not finite (AP of small objects if there are none) are
    omitted. On resume, the `num_rows` rows of the checkpoint are kept and the others dropped: those steps run again.
    Raises UserError if there are fewer. A new event file for TensorBoard, with all rows, replaces the older ones.
    """

    def __init__(self, run: RunFolder, num_rows: int = 0):
        self.rows = run.read_metrics()[:num_rows] if num_rows else []
        if len(self.rows) < num_rows:
            raise UserError(
                f"{run.metrics}: has {len(self.rows)} rows, but the checkpoint was saved after {num_rows}; restore the "
                "file, or delete the run folder to train from scratch"
            )
        with atomic_write(run.metrics) as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)
        self._file = run.metrics.open("a", buffering=1, encoding="utf-8")
        _wait_for_newer_event_file_name(run)
        self._tensorboard = EventFileWriter(str(run.tensorboard))
        start = SessionLog(status=SessionLog.START)  # makes TensorBoard drop the events of older files
        self._tensorboard.add_event(Event(wall_time=time.time(), session_log=start))
        for row in self.rows:
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

    def sync(self) -> int:
        """Write all rows to the disk, where a power cut does not lose them; returns their number."""
        os.fsync(self._file.fileno())
        return len(self.rows)

    def close(self) -> None:
        """Sync metrics.jsonl and close both files."""
        self.sync()
        self._file.close()
        self._tensorboard.close()

    def _add_scalars(self, row: dict[str, Any]) -> None:
        values = [Summary.Value(tag=key, simple_value=value) for key, value in row.items() if key != "step"]
        self._tensorboard.add_event(Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values)))


def _wait_for_newer_event_file_name(run: RunFolder) -> None:
    """TensorBoard reads event files in the order of their names: second, host, process, number."""
    own = f".{os.getpid()}."
    while any(own not in path.name for path in run.tensorboard.glob(f"events.out.tfevents.{int(time.time())}.*")):
        time.sleep(0.05)
