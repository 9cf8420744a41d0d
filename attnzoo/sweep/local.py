"""Training runs in processes of this machine, some at a time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import IO, NamedTuple, Protocol

from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep import outcome
from attnzoo.sweep.folder import Planned
from attnzoo.sweep.outcome import Kind, Outcome

WORKER, LAUNCH = "attnzoo.worker", "attnzoo.worker.launch"
POLL_SECONDS = 0.2
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass
class Ended:
    """How a sweep ended: what became of every run that was started, and whether it was interrupted."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    interrupted: bool = False


def command(run: RunFolder, processes: int) -> list[str]:
    """What trains a run: the worker, or several of them."""
    what = [LAUNCH, str(processes)] if processes > 1 else [WORKER]
    return [sys.executable, "-m", *what, str(run.path)]


class Watcher(Protocol):
    """What is told about runs while they train."""

    def start(self, planned: Planned) -> None:
        """A run is about to start."""

    def update(self, running: list[Planned]) -> None:
        """These runs are running; called several times a second."""

    def finish(self, planned: Planned, outcome: Outcome, again: bool) -> None:
        """A run's process ended; `again` says that it is tried once more."""


def train(planned: Sequence[Planned], jobs: int, watcher: Watcher) -> Ended:
    """Train `planned`, `jobs` at a time; one that fails does not stop the others.

    A run that is killed, not by its own program, is started again at once, up to its `retries`. Ctrl-C lets every
    run finish its step and save; a second one ends them at once.
    """
    waiting, running, ended = list(planned), list[RunProcess](), Ended()
    with _Interrupts(running) as interrupts:
        while running or (waiting and not interrupts.count):
            while waiting and len(running) < jobs and not interrupts.count:
                following = waiting.pop(0)
                watcher.start(following)
                running.append(_start(following))
                if interrupts.count:  # while it was being started
                    interrupts.tell(running[-1])
            time.sleep(POLL_SECONDS)
            watcher.update([one.planned for one in running])
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                result = _conclude(one, interrupts.count > 0)
                again = result.kind is Kind.MACHINE and not interrupts.count
                ended.outcomes[one.planned.dir.path.name] = result
                watcher.finish(one.planned, result, again)
                if again:
                    waiting.insert(0, one.planned)
        ended.interrupted = bool(interrupts.count)
    return ended


class RunProcess(NamedTuple):
    planned: Planned
    process: subprocess.Popen[bytes]
    began: float


def _conclude(one: RunProcess, interrupted: bool) -> Outcome:
    """What became of a run, written down; a machine failure too many is a failure, and our own kill is none."""
    run = one.planned.dir
    result = outcome.judge(run, one.process.returncode, one.began)
    if result.kind is Kind.MACHINE and interrupted:
        result = Outcome(Kind.INTERRUPTED, "SIGKILL")
    try:
        outcome.record(run, result)
        reason = outcome.give_up(run, one.planned.run.config.retries) if result.kind is Kind.MACHINE else None
    except OSError as error:
        return Outcome(Kind.FAILED, f"{result.reason}; {run.path}: cannot be written ({error.strerror})")
    return result if reason is None else Outcome(Kind.FAILED, reason)


def _start(planned: Planned) -> RunProcess:
    config, began = planned.run.config, time.time()
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(config.threads))
    # The worker logs to log.txt itself; what it cannot log (a crash, torchrun's own words) goes there from stderr.
    with crash_log(planned.dir) as stderr, _sigint_blocked():
        process = subprocess.Popen(
            command(planned.dir, config.processes),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,  # a terminal's Ctrl-C comes through us, once
        )
    return RunProcess(planned, process, began)


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """For a process that is started meanwhile: it lets SIGINT in when it can stop in order, not amid its imports."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextmanager
def crash_log(run: RunFolder) -> Iterator[IO[bytes] | None]:
    """The run's log to append to; None, which is our own stderr, where it cannot be written."""
    try:
        file = run.log.open("ab")
    except OSError as error:
        print(f"{run.log}: cannot be written ({error.strerror})", file=sys.stderr)
        yield None
    else:
        with file:
            yield file


class _Interrupts:
    """Counts Ctrl-C and SIGTERM while runs train, and passes them on. A context manager."""

    def __init__(self, running: Sequence[RunProcess]):
        self.count = 0
        self._running = running

    def __enter__(self) -> "_Interrupts":
        self._previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            print("\nstopping: every run finishes its step and saves (Ctrl-C again ends them at once)", file=sys.stderr)
        for one in self._running:
            self.tell(one)

    def tell(self, one: RunProcess) -> None:
        """Pass on to a run what was asked for."""
        if one.process.poll() is not None:
            return
        if self.count == 1:
            one.process.send_signal(signal.SIGINT)  # the worker, or torchrun, which passes it on
        else:
            os.killpg(one.process.pid, signal.SIGKILL)
