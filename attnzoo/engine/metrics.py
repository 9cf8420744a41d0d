"""Writes metrics to metrics.jsonl, the source of truth, and to TensorBoard, a view of it."""

import hashlib
import json
import logging
import math
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram import summary_v2 as histogram
from tensorboard.plugins.text import summary_v2 as text
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from attnzoo.errors import UserError
from attnzoo.files import read_bytes, read_text
from attnzoo.rundir.folder import RunFolder, atomic_write
from attnzoo.rundir.metrics import is_validation

log = logging.getLogger(__name__)

BUCKETS = 24  # of a histogram
COSTS = "cost/"  # keys of what does not change in training: text in TensorBoard
KEPT_PLUGINS = ("images", "histograms")  # what is not in metrics.jsonl


class MetricsLogger:
    """Appends rows such as `{"step": 100, "train/loss": 3.2}` to metrics.jsonl and TensorBoard.

    `step` counts optimiser steps done. None and values that are not finite (AP of small objects if there are none) are
    omitted. On resume, the `num_rows` rows of the checkpoint are kept and the others dropped: those steps run again.
    Raises UserError if there are fewer. A new event file for TensorBoard, with all rows, the config and the costs as
    text, and the pictures and histograms of the evaluations that are kept, replaces the older ones.
    """

    def __init__(self, run: RunFolder, num_rows: int = 0):
        self.rows = run.read_metrics()[:num_rows] if num_rows else []
        if len(self.rows) < num_rows:
            raise UserError(
                f"{run.metrics}: has {len(self.rows)} rows, but the checkpoint was saved after {num_rows}; restore the "
                "file, or delete the run folder to train from scratch"
            )
        self._path = run.metrics
        self._write_rows()
        evaluated = {row["step"] for row in self.rows if is_validation(row)}
        kept = _read_pictures(run.tensorboard, evaluated) if evaluated else []
        _wait_for_newer_event_file_name(run)
        self._tensorboard = EventFileWriter(str(run.tensorboard))
        start = SessionLog(status=SessionLog.START)  # makes TensorBoard drop the events of older files
        self._tensorboard.add_event(Event(wall_time=time.time(), session_log=start))
        if run.config.exists():
            self._add_text("config", f"```yaml\n{read_text(run.config)}```", 0)
        for row in self.rows:
            self._add_row(row)
        for event in kept:
            self._tensorboard.add_event(event)

    def write(self, step: int, values: Mapping[str, float | None]) -> dict[str, Any]:
        """Append one row; returns it as written."""
        finite = {key: value for key, value in values.items() if value is not None and math.isfinite(value)}
        row = {"step": step, **finite}
        self.rows.append(row)
        line = json.dumps(row) + "\n"
        self._file.write(line)
        self._written.update(line.encode())
        self._add_row(row)
        return row

    def add_image(self, tag: str, png: bytes, step: int) -> None:
        """Add a PNG image to TensorBoard."""
        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self._add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def add_histogram(self, tag: str, values: npt.NDArray[Any], step: int) -> None:
        """Add a histogram of finite values to TensorBoard."""
        self._add_summary(histogram.histogram_pb(tag, np.asarray(values), buckets=BUCKETS), step)

    def flush(self) -> None:
        """Write what was added to TensorBoard to its file."""
        self._tensorboard.flush()

    def latest(self, key: str) -> float | None:
        """The latest value of `key`; None if there is none."""
        return next((row[key] for row in reversed(self.rows) if key in row), None)

    def sync(self) -> int:
        """Write all rows to the disk, where a power cut does not lose them; returns their number.

        If the file was damaged or deleted meanwhile, it is written again.
        """
        os.fsync(self._file.fileno())
        if not self._is_intact():
            log.warning("%s: changed while the run trains; written again", self._path)
            self._file.close()
            self._write_rows()
        return len(self.rows)

    def close(self) -> None:
        """Sync metrics.jsonl and close both files."""
        self.sync()
        self._file.close()
        self._tensorboard.close()

    def _write_rows(self) -> None:
        content = "".join(json.dumps(row) + "\n" for row in self.rows)
        if self._path.is_dir():  # damaged; a file is replaced
            self._path.rename(self._path.with_name(f"{self._path.name}.corrupt"))
        with atomic_write(self._path) as file:
            file.write(content)
        self._written = hashlib.sha256(content.encode())
        self._file = self._path.open("a", buffering=1, encoding="utf-8")

    def _is_intact(self) -> bool:
        try:
            return hashlib.sha256(read_bytes(self._path)).digest() == self._written.digest()
        except OSError:
            return False

    def _add_row(self, row: dict[str, Any]) -> None:
        if costs := {key.removeprefix(COSTS): value for key, value in row.items() if key.startswith(COSTS)}:
            lines = [f"| {name} | {value:,.4g} |" for name, value in costs.items()]
            self._add_text("cost", "\n".join(["| cost | of one image |", "| --- | --- |", *lines]), row["step"])
        scalars = {key: value for key, value in row.items() if key != "step" and not key.startswith(COSTS)}
        values = [Summary.Value(tag=key, simple_value=value) for key, value in scalars.items()]
        if values:
            self._add_summary(Summary(value=values), row["step"])

    def _add_text(self, tag: str, markdown: str, step: int) -> None:
        self._add_summary(text.text_pb(tag, markdown), step)

    def _add_summary(self, summary: Summary, step: int) -> None:
        self._tensorboard.add_event(Event(wall_time=time.time(), step=step, summary=summary))


def _read_pictures(folder: Path, steps: set[int]) -> list[Event]:
    """The images and histograms at `steps` in the event files of a run, by step; of two, the later one."""
    events: dict[tuple[int, str], Event] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        try:
            for event in EventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    if event.step in steps and value.metadata.plugin_data.plugin_name in KEPT_PLUGINS:
                        summary = Summary(value=[value])
                        kept = Event(wall_time=event.wall_time, step=event.step, summary=summary)
                        events[event.step, value.tag] = kept
        except Exception:  # a file that a crash cut short: what could be read of it is kept
            log.warning("%s: cannot be read to its end", path)
    return [events[key] for key in sorted(events)]


def _wait_for_newer_event_file_name(run: RunFolder) -> None:
    """TensorBoard reads event files in the order of their names: second, host, process, number."""
    own = f".{os.getpid()}."
    while any(own not in path.name for path in run.tensorboard.glob(f"events.out.tfevents.{int(time.time())}.*")):
        time.sleep(0.05)
