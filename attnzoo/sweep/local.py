"""The local launcher: trains runs in processes of this host, `jobs` at a time."""

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import NamedTuple, Protocol

from attnzoo.engine.interrupt import stop_signals
from attnzoo.sweep import outcome
from attnzoo.sweep.expand import RunSpec
from attnzoo.sweep.outcome import ExitKind, Outcome
from attnzoo.sweep.workers import Worker, WorkerStarter

POLL_SECONDS = 0.2


@dataclass
class SweepResult:
    """The outcome of every run that was started, by folder name, and whether the sweep was interrupted."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    interrupted: bool = False


class RunProcess(NamedTuple):
    """The process that trains a run; `start_time` is in seconds since the epoch."""

    run: RunSpec
    worker: Worker
    start_time: float


class Callbacks(Protocol):
    """Called by `train` as runs start, train and end."""

    def start(self, run: RunSpec) -> None:
        """A run is about to start."""

    def update(self, running: list[RunSpec]) -> None:
        """These runs are training; called several times a second."""

    def finish(self, run: RunSpec, outcome: Outcome, will_retry: bool) -> None:
        """A run's process ended; with `will_retry` it is started again."""


def train(runs: Sequence[RunSpec], jobs: int, callbacks: Callbacks) -> SweepResult:
    """Train `runs`, `jobs` at a time; a failed one does not stop the others.

    A run that is killed, or loses one of its processes, is retried at once, up to its `retries`. Ctrl-C lets every run
    finish its step and save; a second one kills them. So do exceptions, such as that of a closed pipe, which are then
    raised.
    """
    queue, running, result = list(runs), list[RunProcess](), SweepResult()
    with (
        WorkerStarter() as starter,
        _SignalForwarder(running, starter) as signals,
        _stopped_by_errors(running, signals),
    ):
        while running or (queue and not signals.count):
            while queue and len(running) < jobs and not signals.count:
                starter.prepare(queue[0])
                if signals.count:
                    break
                callbacks.start(queue[0])
                start_time = time.time()
                running.append(RunProcess(queue[0], starter.start(queue.pop(0)), start_time))
                if signals.count:  # while it was being started
                    signals.forward(running[-1])
            time.sleep(POLL_SECONDS)
            callbacks.update([process.run for process in running])
            for ended in list(running):
                returncode = ended.worker.poll()
                if returncode is None:
                    continue
                running.remove(ended)
                run_outcome = _finish(ended, returncode, signals.count > 0)
                will_retry = run_outcome.kind is ExitKind.MACHINE_FAILURE and not signals.count
                result.outcomes[ended.run.folder.path.name] = run_outcome
                callbacks.finish(ended.run, run_outcome, will_retry)
                if will_retry:
                    queue.insert(0, ended.run)
        result.interrupted = bool(signals.count)
    return result


@contextmanager
def _stopped_by_errors(running: list[RunProcess], signals: "_SignalForwarder") -> Iterator[None]:
    """After an exception within it, stop the runs, wait until they have saved, and record how they ended."""
    try:
        yield
    except BaseException:
        if not signals.count:  # a second stop would kill runs that are saving
            signals.stop()
        while running:
            time.sleep(POLL_SECONDS)
            for ended in list(running):
                if (returncode := ended.worker.poll()) is not None:
                    running.remove(ended)
                    _finish(ended, returncode, interrupted=True)
        raise


def _finish(ended: RunProcess, returncode: int, interrupted: bool) -> Outcome:
    """Classify and record how a run ended.

    A machine failure beyond `retries` becomes a failure; a kill by this process counts as an interrupt.
    """
    folder = ended.run.folder
    result = outcome.classify(folder, returncode, ended.start_time)
    failed_machine = result.kind is ExitKind.MACHINE_FAILURE
    if failed_machine and interrupted:
        failed_machine, result = False, Outcome(ExitKind.INTERRUPTED, "SIGKILL")
    try:
        outcome.record(folder, result)
        reason = outcome.fail_if_exhausted(folder, ended.run.config.retries) if failed_machine else None
    except OSError as error:
        return Outcome(ExitKind.FAILED, f"{result.reason}; {folder.path}: cannot be written ({error.strerror})")
    return result if reason is None else Outcome(ExitKind.FAILED, reason)


class _SignalForwarder:
    """Counts the signals that ask a program to end, and forwards them to the running processes. A context manager.

    They would end this process, and the runs would go on alone.
    """

    def __init__(self, running: Sequence[RunProcess], starter: WorkerStarter):
        self.count = 0
        self._running, self._starter = running, starter

    def __enter__(self) -> "_SignalForwarder":
        self._previous = {signum: signal.signal(signum, self._on_signal) for signum in stop_signals()}
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """As a signal does."""
        self.count += 1
        if self.count == 1:
            with suppress(OSError):  # the terminal may be gone
                print("\nstopping: runs finish their step and save (Ctrl-C again kills them)", file=sys.stderr)
        for process in self._running:
            self.forward(process)
        if self.count > 1:
            self._starter.kill_servers()

    def forward(self, process: RunProcess) -> None:
        """Send SIGINT; after a second signal, SIGKILL to all processes of the run."""
        if self.count == 1:
            process.worker.interrupt()
        else:
            process.worker.kill()
