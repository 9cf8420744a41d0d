"""What a SLURM job does on its first node: start the run's processes, see how they end, requeue the job or not.

It runs beside the processes, not in them, so it also sees those ends that they cannot see. Imports no torch.
"""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType

import attnzoo
from attnzoo import slurm
from attnzoo.rundir import attempts
from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep import outcome
from attnzoo.sweep.local import WORKER, crash_log
from attnzoo.sweep.outcome import Kind, Outcome

POLL_SECONDS = 0.2
MARGIN_SECONDS = 15  # before the end of its time a job that has not saved is requeued all the same
FAILURE = re.compile(
    r"srun: error: (?:Node failure on (?P<lost>\S+)"
    r"|(?P<node>\S+): tasks? [\d,-]+: (?:Exited with exit code (?P<code>\d+)|(?P<signal>[A-Z][a-z ]+)))"
)
SIGNALS = {signal.strsignal(number): 128 + number for number in signal.valid_signals()}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunJob:
    """A run as a job: what submitit pickles and calls. `code` is the folder that attnzoo must come from."""

    run: str
    nodes: int
    processes: int
    retries: int
    code: str

    def __call__(self) -> None:
        """Train; ends the process with the worker's exit code."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        if not Path(attnzoo.__file__).is_relative_to(self.code):
            log.error("attnzoo comes from %s, not from the snapshot %s", attnzoo.__file__, self.code)
            sys.exit(outcome.REFUSED)
        sys.exit(_Supervisor(self).supervise())


class _Supervisor:
    def __init__(self, task: RunJob):
        self.task, self.run = task, RunFolder(task.run)
        self.job = attempts.job_id() or ""
        self.began, self.step = time.time(), self.run.last_step()
        self.start_of_log = 0
        self._limit: float | None = None
        self.told = False  # by SIGTERM: SLURM ends the job, to cancel or to requeue it

    def supervise(self) -> int:
        """Run the processes to their end and decide what follows; returns the exit code."""
        if self.run.read_status()["state"] == "done":
            log.info("%s is done", self.run.path)
            return outcome.DONE
        try:
            with (self.run.path / ".lock").open("a"):
                pass
            self.start_of_log = self.run.log.stat().st_size if self.run.log.exists() else 0
            code = self._train()
            result = self._judge(code)
            log.info("%s: %s%s", self.run.path, result.kind, f" ({result.reason})" if result.reason else "")
            return self._follow(result)
        except OSError as error:
            log.error("%s: cannot be written (%s)", self.run.path, error.strerror)
            return outcome.REFUSED

    def _train(self) -> int | None:
        """The exit code of srun; None if the job's time ends before the processes have."""
        with crash_log(self.run) as stderr:
            process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr
            )
        self._install_handlers(process)
        end = self._limit = self._end()
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if end is not None and time.time() > end - MARGIN_SECONDS:
                end = self._end()  # it may have been extended
                if end is not None and time.time() > end - MARGIN_SECONDS:
                    return None
        return process.returncode

    def _command(self) -> list[str]:
        cpus = os.environ.get("SLURM_CPUS_PER_TASK", "1")  # which srun does not take over from its job
        options = [f"--nodes={self.task.nodes}", f"--ntasks={self.task.processes}", f"--cpus-per-task={cpus}"]
        return ["srun", "--kill-on-bad-exit=1", *options, sys.executable, "-m", WORKER, str(self.run.path)]

    def _install_handlers(self, process: "subprocess.Popen[bytes]") -> None:
        """SLURM signals the processes itself; we stay until they have saved."""

        def forward(number: int, frame: FrameType | None) -> None:
            process.send_signal(number)

        def note(number: int, frame: FrameType | None) -> None:
            self.told = True

        signal.signal(signal.SIGTERM, note)
        signal.signal(signal.SIGCONT, lambda number, frame: None)
        signal.signal(signal.SIGUSR2, forward)

    def _end(self) -> float | None:
        """When the job's time ends, in seconds since the epoch."""
        try:
            return datetime.fromisoformat(slurm.end_time(self.job)).timestamp()
        except ValueError:  # unlimited, or no answer
            return None

    def _judge(self, code: int | None) -> Outcome:
        """What became of the processes; the first that failed counts, since srun then ends the others."""
        if code is None:
            return Outcome(Kind.INTERRUPTED, "timeout")
        _, first = self._first_failure()
        if first is not None:
            code = first
        result = outcome.judge(self.run, code, self.began)
        if result.kind is Kind.MACHINE and self.told:
            return Outcome(Kind.INTERRUPTED, "SIGTERM")
        if result == (Kind.INTERRUPTED, "SIGTERM") and not self.told:
            return Outcome(Kind.MACHINE, "killed by SIGTERM")
        late = self._limit is not None and time.time() > (self.began + self._limit) / 2
        if result == (Kind.INTERRUPTED, "SIGUSR2") and late and self.run.last_step() == self.step:
            return Outcome(Kind.FAILED, "slurm.time is too short: not a step was saved")
        return result

    def _follow(self, result: Outcome) -> int:
        outcome.record(self.run, result)
        if result.kind is Kind.INTERRUPTED:
            if result.reason in ("SIGUSR2", "timeout"):
                return self._requeue()
            if slurm.was_cancelled(self.job):
                self.run.write_status(state="cancelled")
            return 130
        if result.kind is not Kind.MACHINE:
            return {Kind.DONE: 0, Kind.REFUSED: outcome.REFUSED}.get(result.kind, 1)
        if reason := outcome.give_up(self.run, self.task.retries):
            log.error("%s", reason)
            return 1
        return self._requeue(self._culprits())

    def _requeue(self, exclude: Collection[str] = ()) -> int:
        """Requeue the job, unless SLURM is ending or requeueing it already."""
        if not slurm.is_running(self.job):
            log.info("not requeued: job %s does not run any more", self.job)
            return 1
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which requeueing sends to us
        log.info("requeueing job %s%s", self.job, f", not on {', '.join(exclude)}" if exclude else "")
        slurm.requeue(self.job, exclude)
        return 1

    def _culprits(self) -> set[str]:
        """The node that failed first, if the job can do without it."""
        node, _ = self._first_failure()
        others = slurm.usable_nodes(os.environ["SLURM_JOB_PARTITION"]) - {node}
        return {node} if node and len(others) >= self.task.nodes else set()

    def _first_failure(self) -> tuple[str | None, int | None]:
        """The node on which a process failed first and its exit code, by srun's words; None for what they leave out."""
        with self.run.log.open("rb") as file:
            file.seek(self.start_of_log)
            found = FAILURE.search(file.read().decode(errors="replace"))
        if found is None:
            return None, None
        if found["lost"]:
            return found["lost"], outcome.LOST
        code = int(found["code"]) if found["code"] else SIGNALS.get(found["signal"].strip())
        return found["node"], code
