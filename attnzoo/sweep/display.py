"""What a terminal shows of a sweep: a row per running run; plain lines where there is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from attnzoo.rundir import duration
from attnzoo.rundir.background import call_periodically
from attnzoo.rundir.metrics import STATUS
from attnzoo.sweep.folder import Planned
from attnzoo.sweep.outcome import Outcome

FOLLOW_SECONDS = 0.5
QUIET_SECONDS = 60  # after which a run that has nothing to tell says where it is


class _Said(NamedTuple):
    """What the last plain line of a run was about: the step last evaluated, and when it was written."""

    evaluated: int | None
    time: float


class Display:
    """Follows the status files of running runs; `on_start` is called as each starts. A context manager."""

    def __init__(self, total: int, on_start: Callable[[Planned], None], console: Console | None = None):
        self.on_start = on_start
        self.console = console or Console(soft_wrap=True, highlight=False)
        self.total = total
        self.begun = 0
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, _Said] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def start(self, planned: Planned) -> None:
        """A run starts."""
        self.on_start(planned)
        self.begun += 1
        self._say(f"[{self.begun}/{self.total}] {planned.dir.path.name}: starts ({planned.dir.path})")
        name = planned.dir.path.name
        self._tasks[name] = self._progress.add_task(name, total=None, values="starting")

    def update(self, running: list[Planned]) -> None:
        """Show where the running runs are and drop the rows of those that ended."""
        for planned in running:
            self._show(planned)
        names = {planned.dir.path.name for planned in running}
        for name in [name for name in self._tasks if name not in names]:
            self._progress.remove_task(self._tasks.pop(name))

    @contextmanager
    def following(self, planned: Planned) -> Iterator[None]:
        """Show a run while this process trains it: on a terminal, for elsewhere the run's own log says as much."""
        if not self.console.is_terminal:
            yield
            return
        try:
            with call_periodically(lambda: self.update([planned]), FOLLOW_SECONDS):
                yield
        finally:
            self.update([])

    def finish(self, planned: Planned, outcome: Outcome, again: bool) -> None:
        """A run ended."""
        status = planned.dir.read_status()
        reason = f" ({outcome.reason})" if outcome.reason else ""
        self._say(f"{planned.dir.path.name}: {outcome.kind}{reason}{_values(status, ' at step {}/{}')}")
        if again:
            self.begun -= 1
            self._say(f"{planned.dir.path.name}: is tried again")

    def _show(self, planned: Planned) -> None:
        name, status = planned.dir.path.name, planned.dir.read_status()
        step, steps = status.get("step"), status.get("steps")
        if steps:
            self._progress.update(
                self._tasks[name], completed=step, total=steps, values=_values(status, "").lstrip(", ")
            )
        if self.console.is_terminal or status["state"] != "running":
            return
        evaluated, now = status.get("evaluated"), time.monotonic()
        said = self._said.setdefault(name, _Said(evaluated, now))
        if evaluated != said.evaluated:
            self._say(f"{name}: evaluated at step {evaluated}{_values(status, ', now at {}/{}')}")
        elif now - said.time > QUIET_SECONDS:
            self._say(f"{name}{_values(status, ': step {}/{}')}")
        else:
            return
        self._said[name] = _Said(evaluated, now)

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False)


def _values(status: dict[str, object], position: str) -> str:
    shown = position.format(status.get("step", 0), status.get("steps", "?"))
    for key in STATUS.values():
        if isinstance(value := status.get(key), (int, float)):
            shown += f", {key} {value:.3f}"
    eta = status.get("eta")
    if isinstance(eta, (int, float)) and eta > 0:
        shown += f", {duration.format_duration(eta)} left"
    return shown
