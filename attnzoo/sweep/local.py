"""The local launcher: trains runs in processes of this host, `jobs` at a time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import IO, NamedTuple, Protocol

from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep import outcome
from attnzoo.sweep.expand import RunSpec
from attnzoo.sweep.outcome import ExitKind, Outcome

WORKER_MODULE, LAUNCHER_MODULE = "attnzoo.worker", "attnzoo.worker.launch"
POLL_SECONDS = 0.2
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass
class SweepResult:
    """The outcome of every run that was started, by folder name, and whether the sweep was interrupted."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    interrupted: bool = False


class RunProcess(NamedTuple):
    """The process that trains a run, or torchrun with its processes; `start_time` is in seconds since the epoch."""

    run: RunSpec
    popen: subprocess.Popen[bytes]
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
    finish its step and save; a second one kills them.
    """
    queue, running, result = list(runs), list[RunProcess](), SweepResult()
    with _SignalForwarder(running) as signals:
        while running or (queue and not signals.count):
            while queue and len(running) < jobs and not signals.count:
                callbacks.start(queue[0])
                running.append(_start(queue.pop(0)))
                if signals.count:  # while it was being started
                    signals.forward(running[-1])
            time.sleep(POLL_SECONDS)
            callbacks.update([process.run for process in running])
            for ended in [process for process in running if process.popen.poll() is not None]:
                running.remove(ended)
                run_outcome = _finish(ended, signals.count > 0)
                will_retry = run_outcome.kind is ExitKind.MACHINE_FAILURE and not signals.count
                result.outcomes[ended.run.folder.path.name] = run_outcome
                callbacks.finish(ended.run, run_outcome, will_retry)
                if will_retry:
                    queue.insert(0, ended.run)
        result.interrupted = bool(signals.count)
    return result


def command(run: RunFolder, processes: int) -> list[str]:
    """The command that trains a run: the worker, or torchrun with several."""
    module = [LAUNCHER_MODULE, str(processes)] if processes > 1 else [WORKER_MODULE]
    return [sys.executable, "-m", *module, str(run.path)]


def _start(run: RunSpec) -> RunProcess:
    start_time = time.time()
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(run.config.threads))
    # The worker writes log.txt itself; stderr goes there too, for crashes and torchrun's messages.
    with open_crash_log(run.folder) as stderr, _sigint_blocked():
        popen = subprocess.Popen(
            command(run.folder, run.config.processes),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,  # so that Ctrl-C reaches the worker only through this process
        )
    return RunProcess(run, popen, start_time)


def _finish(ended: RunProcess, interrupted: bool) -> Outcome:
    """Classify and record how a run ended.

    A machine failure beyond `retries` becomes a failure; a kill by this process counts as an interrupt.
    """
    folder = ended.run.folder
    result = outcome.classify(folder, ended.popen.returncode, ended.start_time)
    failed_machine = result.kind is ExitKind.MACHINE_FAILURE
    if failed_machine and interrupted:
        failed_machine, result = False, Outcome(ExitKind.INTERRUPTED, "SIGKILL")
    try:
        outcome.record(folder, result)
        reason = outcome.fail_if_exhausted(folder, ended.run.config.retries) if failed_machine else None
    except OSError as error:
        return Outcome(ExitKind.FAILED, f"{result.reason}; {folder.path}: cannot be written ({error.strerror})")
    return result if reason is None else Outcome(ExitKind.FAILED, reason)


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Start processes with SIGINT blocked; the worker unblocks it when it can save, not during its imports."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextmanager
def open_crash_log(run: RunFolder) -> Iterator[IO[bytes] | None]:
    """The run's log, opened for appending; None, which inherits our stderr, if it cannot be written."""
    try:
        file = run.log.open("ab")
    except OSError as error:
        print(f"{run.log}: cannot be written ({error.strerror})", file=sys.stderr)
        yield None
    else:
        with file:
            yield file


class _SignalForwarder:
    """Counts SIGINT, SIGTERM and SIGHUP, and forwards them to the running processes. A context manager.

    SIGHUP, of a terminal that was closed, is left ignored if it is, as under nohup.
    """

    def __init__(self, running: Sequence[RunProcess]):
        self.count = 0
        self._running = running

    def __enter__(self) -> "_SignalForwarder":
        signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            signals.remove(signal.SIGHUP)
        self._previous = {signum: signal.signal(signum, self._on_signal) for signum in signals}
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            with suppress(OSError):  # the terminal may be gone
                print("\nstopping: runs finish their step and save (Ctrl-C again kills them)", file=sys.stderr)
        for process in self._running:
            self.forward(process)

    def forward(self, process: RunProcess) -> None:
        """Send SIGINT; after a second signal, SIGKILL to all processes of the run."""
        if process.popen.poll() is not None:
            return
        if self.count == 1:
            process.popen.send_signal(signal.SIGINT)  # to the worker, or to torchrun, which forwards it
        else:
            os.killpg(process.popen.pid, signal.SIGKILL)
