"""What a run says while it trains: status.json for those who watch, plain lines in the log."""

import logging
import time
from typing import Any

from attnzoo.rundir import duration
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.metrics import STATUS

log = logging.getLogger(__name__)

STATUS_SECONDS = 1.0


class Progress:
    """Rank 0's view of the run; `run` is None on the other ranks, where nothing is written."""

    def __init__(self, run: RunFolder | None, steps: int):
        self.run = run
        self.steps = steps
        self._written = 0.0
        self._fields: dict[str, Any] = {}
        self._trained = 0  # steps by this process
        self._seconds = 0.0  # spent on them

    def step(self, step: int, seconds: float) -> None:
        """One more optimiser step is done: number `step`, which took `seconds`."""
        self._trained += 1
        self._seconds += seconds
        self.beat(step=step)

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the steps of this process; evaluation is not counted."""
        if not self._trained:
            return None
        return (self.steps - self._fields["step"]) * self._seconds / self._trained

    def beat(self, now: bool = False, **fields: Any) -> None:
        """Note `fields` and write them, at most once a second unless `now`."""
        self._fields |= fields
        if self.run is not None and (now or time.monotonic() - self._written > STATUS_SECONDS):
            self.run.write_status(**self._fields, steps=self.steps, eta=self.seconds_left)
            self._written = time.monotonic()

    def report(self, row: dict[str, Any]) -> None:
        """One line of the log for a row of metrics, its values also in the status."""
        shown = {name: row[key] for key, name in STATUS.items() if key in row}
        if any(key.startswith("val/") for key in row):
            shown["evaluated"] = row["step"]
        self.beat(**shown)
        if self.run is not None:
            values = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if key != "step")
            left = f" ({duration.format_duration(self.seconds_left)} left)" if self.seconds_left else ""
            log.info("step %d/%d%s: %s", row["step"], self.steps, left, values)
