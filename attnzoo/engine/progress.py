"""What a run says while it trains: status.json for those who watch, plain lines in the log."""

import logging
import time
from typing import Any

from attnzoo.rundir import duration
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.metrics import STATUS

log = logging.getLogger(__name__)

STATUS_SECONDS = 1.0


class ProgressReporter:
    """Rank 0's view of the run; `run` is None on the other ranks, where nothing is written."""

    def __init__(self, run: RunFolder | None, steps: int):
        self.run = run
        self.steps = steps
        self._last_write = 0.0
        self._status: dict[str, Any] = {}
        self._steps_done = 0  # steps by this process
        self._seconds = 0.0  # spent on them

    def step(self, step: int, seconds: float) -> None:
        """One more optimiser step is done: number `step`, which took `seconds`."""
        self._steps_done += 1
        self._seconds += seconds
        self.update(step=step)

    @property
    def eta(self) -> float | None:
        """Estimated from the steps of this process; evaluation is not counted."""
        if not self._steps_done:
            return None
        return (self.steps - self._status["step"]) * self._seconds / self._steps_done

    def update(self, force: bool = False, **fields: Any) -> None:
        """Note `fields` and write them, at most once a second unless `now`."""
        self._status |= fields
        if self.run is not None and (force or time.monotonic() - self._last_write > STATUS_SECONDS):
            self.run.write_status(**self._status, steps=self.steps, eta=self.eta)
            self._last_write = time.monotonic()

    def log_metrics(self, row: dict[str, Any]) -> None:
        """One line of the log for a row of metrics, its values also in the status."""
        shown = {name: row[key] for key, name in STATUS.items() if key in row}
        if any(key.startswith("val/") for key in row):
            shown["evaluated"] = row["step"]
        self.update(**shown)
        if self.run is not None:
            values = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if key != "step")
            left = f" ({duration.format_duration(self.eta)} left)" if self.eta else ""
            log.info("step %d/%d%s: %s", row["step"], self.steps, left, values)
