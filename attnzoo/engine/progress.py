"""Reports the progress of a run in status.json and in the log."""

import logging
import time
from typing import Any

from attnzoo.rundir import duration
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.metrics import STATUS, is_validation

log = logging.getLogger(__name__)

STATUS_SECONDS = 1.0


class ProgressReporter:
    """Reports the progress of `run`, which is None on all ranks but 0: they write nothing."""

    def __init__(self, run: RunFolder | None, steps: int):
        self.run = run
        self.steps = steps
        self._last_write = 0.0
        self._status: dict[str, Any] = {}
        self._steps_done = 0  # by this process
        self._seconds = 0.0  # spent on them

    def step(self, step: int, seconds: float) -> None:
        """Report that optimiser step number `step` is done and took `seconds`."""
        self._steps_done += 1
        self._seconds += seconds
        self.update(step=step)

    @property
    def eta(self) -> float | None:
        """Estimated seconds to the end, without evaluations; None before the first step of this process."""
        if not self._steps_done:
            return None
        return (self.steps - self._status["step"]) * self._seconds / self._steps_done

    def update(self, force: bool = False, **fields: Any) -> None:
        """Update the status file: at most once per second unless `force`."""
        self._status |= fields
        if self.run is not None and (force or time.monotonic() - self._last_write > STATUS_SECONDS):
            self.run.write_status(**self._status, steps=self.steps, eta=self.eta)
            self._last_write = time.monotonic()

    def log_metrics(self, row: dict[str, Any]) -> None:
        """Report a row of metrics in the status and as a line of the log."""
        status = {name: row[key] for key, name in STATUS.items() if key in row}
        if is_validation(row):
            status["evaluated"] = row["step"]
        self.update(**status)
        if self.run is not None:
            values = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if key != "step")
            eta = f" (ETA {duration.format_duration(self.eta)})" if self.eta else ""
            log.info("step %d/%d%s: %s", row["step"], self.steps, eta, values)
