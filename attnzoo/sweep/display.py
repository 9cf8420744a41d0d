"""Progress of a sweep: a row per training run on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from attnzoo.console import PipeConsole
from attnzoo.errors import UserError
from attnzoo.rundir import duration
from attnzoo.rundir.background import call_periodically
from attnzoo.rundir.metrics import STATUS
from attnzoo.sweep.expand import RunSpec
from attnzoo.sweep.outcome import Outcome

REFRESH_SECONDS = 0.5
STATUS_LINE_SECONDS = 60  # longest time without a line about a run, if not on a terminal


class _LastLine(NamedTuple):
    """The last plain line of a run: the step last evaluated by then, and when it was printed."""

    evaluated: int | None
    time: float


class ProgressDisplay:
    """Shows the status files of running runs; `on_start` is called as each run starts. A context manager."""

    def __init__(self, total: int, on_start: Callable[[RunSpec], None], console: Console | None = None):
        self.on_start = on_start
        self.console = console or PipeConsole(soft_wrap=True, highlight=False)
        self.total = total
        self.num_started = 0
        self._tasks: dict[str, TaskID] = {}
        self._last_lines: dict[str, _LastLine] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> "ProgressDisplay":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def start(self, run: RunSpec) -> None:
        """A run is about to start."""
        self.on_start(run)
        self.num_started += 1
        name = run.folder.path.name
        self._print(f"[{self.num_started}/{self.total}] {name}: starting ({run.folder.path})")
        self._tasks[name] = self._progress.add_task(name, total=None, values="starting")

    def update(self, running: list[RunSpec]) -> None:
        """Refresh the rows of training runs and remove those of the others."""
        for run in running:
            self._show(run)
        names = {run.folder.path.name for run in running}
        for name in [name for name in self._tasks if name not in names]:
            self._progress.remove_task(self._tasks.pop(name))

    @contextmanager
    def live_updates(self, run: RunSpec) -> Iterator[None]:
        """Show a run while this process trains it. Without a terminal the run's own log is enough."""
        if not self.console.is_terminal:
            yield
            return
        try:
            with call_periodically(lambda: self.update([run]), REFRESH_SECONDS):
                yield
        finally:
            self.update([])

    def finish(self, run: RunSpec, outcome: Outcome, will_retry: bool) -> None:
        """A run ended."""
        name, status = run.folder.path.name, _read_status(run)
        reason = f" ({outcome.reason})" if outcome.reason else ""
        self._print(f"{name}: {outcome.kind}{reason}{_format_status(status, ' at step {}/{}')}")
        if will_retry:
            self.num_started -= 1
            self._print(f"{name}: retrying")

    def _show(self, run: RunSpec) -> None:
        name, status = run.folder.path.name, _read_status(run)
        step, steps = status.get("step"), status.get("steps")
        if steps:
            values = _format_status(status, "").lstrip(", ")
            self._progress.update(self._tasks[name], completed=step, total=steps, values=values)
        if self.console.is_terminal or status["state"] != "running":
            return
        evaluated, now = status.get("evaluated"), time.monotonic()
        last = self._last_lines.setdefault(name, _LastLine(evaluated, now))
        if evaluated != last.evaluated:
            self._print(f"{name}: evaluated at step {evaluated}{_format_status(status, ', now at {}/{}')}")
        elif now - last.time > STATUS_LINE_SECONDS:
            self._print(f"{name}{_format_status(status, ': step {}/{}')}")
        else:
            return
        self._last_lines[name] = _LastLine(evaluated, now)

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False)


@contextmanager
def display_run(run: RunSpec, display: ProgressDisplay | None) -> Iterator[None]:
    """Show the progress of a run that this process trains, if it is the one that shows it."""
    if display is None:
        yield
    else:
        display.start(run)
        with display.live_updates(run):
            yield


def _read_status(run: RunSpec) -> dict[str, Any]:
    """The status of a run; "pending" if it is corrupt, which is reported at the end."""
    try:
        return run.folder.read_status()
    except UserError:
        return {"state": "pending"}


def _format_status(status: dict[str, Any], position: str) -> str:
    """`position` with step and steps filled in, then the values of the status and the time that remains."""
    line = position.format(status.get("step", 0), status.get("steps", "?"))
    for key in STATUS.values():
        if isinstance(value := status.get(key), (int, float)):
            line += f", {key} {value:.3f}"
    eta = status.get("eta")
    if isinstance(eta, (int, float)) and eta > 0:
        line += f", ETA {duration.format_duration(eta)}"
    return line
