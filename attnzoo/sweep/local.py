"""Training runs in processes of this machine, some at a time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import NamedTuple, Protocol

from attnzoo.rundir import RunDir
from attnzoo.sweep.folder import Planned

WORKER = "attnzoo.engine.worker"
POLL_SECONDS = 0.2
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass
class Outcome:
    """How a sweep ended: the exit code of every run that was started, and whether it was interrupted."""

    codes: dict[str, int] = field(default_factory=dict)
    interrupted: bool = False


def command(run: RunDir, processes: int) -> list[str]:
    """What trains a run: the worker, under torchrun if it has several processes."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    return [sys.executable, "-m", *(launcher if processes > 1 else []), WORKER, str(run.path)]


class Watcher(Protocol):
    """What is told about runs while they train."""

    def start(self, planned: Planned) -> None:
        """A run is about to start."""

    def update(self, running: list[Planned]) -> None:
        """These runs are running; called several times a second."""

    def finish(self, planned: Planned) -> None:
        """A run's process ended."""


def train(planned: Sequence[Planned], jobs: int, watcher: Watcher) -> Outcome:
    """Train `planned`, `jobs` at a time; one that fails does not stop the others.

    Ctrl-C lets every run finish its step and save; a second one ends them at once.
    """
    waiting, running, outcome = list(planned), list[_Running](), Outcome()
    with _Interrupts(running) as interrupts:
        while running or (waiting and not interrupts.count):
            while waiting and len(running) < jobs and not interrupts.count:
                following = waiting.pop(0)
                watcher.start(following)
                running.append(_Running(following, _start(following)))
            time.sleep(POLL_SECONDS)
            watcher.update([one.planned for one in running])
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                outcome.codes[one.planned.dir.path.name] = one.process.returncode
                watcher.finish(one.planned)
        outcome.interrupted = bool(interrupts.count)
    return outcome


class _Running(NamedTuple):
    planned: Planned
    process: subprocess.Popen[bytes]


def _start(planned: Planned) -> subprocess.Popen[bytes]:
    config = planned.run.config
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(config.threads))
    # The worker logs to log.txt itself; what it cannot log (a crash, torchrun's own words) goes there from stderr.
    with planned.dir.log.open("ab") as log:
        return subprocess.Popen(
            command(planned.dir, config.processes),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,  # a terminal's Ctrl-C comes through us, once
        )


class _Interrupts:
    """Counts Ctrl-C and SIGTERM while runs train, and passes them on. A context manager."""

    def __init__(self, running: Sequence[_Running]):
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
        for _, process in self._running:
            if process.poll() is not None:
                continue
            if self.count == 1:
                process.send_signal(signal.SIGINT)  # the worker, or torchrun, which passes it on
            else:
                os.killpg(process.pid, signal.SIGKILL)
