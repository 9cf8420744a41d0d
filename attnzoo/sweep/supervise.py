"""What a SLURM job runs on its first node: starts the workers with srun, classifies how they end, requeues the job.

submitit calls it. It runs outside the workers, so it also detects crashes and lost nodes. Imports no torch.
"""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from types import FrameType

import attnzoo
from attnzoo import slurm
from attnzoo.errors import ExitCode, UserError
from attnzoo.files import open_file, open_for_appending
from attnzoo.rundir import attempts
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.ledger import Ledger
from attnzoo.rundir.rebuild import JOBS, read_job, read_jobs
from attnzoo.sweep import outcome
from attnzoo.sweep.outcome import ExitKind, Outcome
from attnzoo.sweep.workers import WORKER_MODULE, open_crash_log

POLL_SECONDS = 0.2
CONTROLLER_SECONDS, CONTROLLER_POLL_SECONDS = 3600, 10  # how long to wait for SLURM's controller, which may restart
NO_CONTROLLER = ("Unable to confirm allocation", "Unable to contact slurm controller")  # of srun
REQUEUE_MARGIN_SECONDS = 15  # before the time limit: requeue then even if the run has not saved
REQUEUE_REASONS = ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "timeout")  # of an interrupt
SRUN_ERROR = re.compile(
    r"srun: error: (?:(?:Node failure on|Task launch for \S+ failed on node) (?P<lost>[^\s:]+)"
    r"|(?P<node>\S+): tasks? [\d,-]+: (?:Exited with exit code (?P<code>\d+)|(?P<signal>[A-Z][a-z ]+)))"
)
SIGNAL_EXIT_CODES = {signal.strsignal(signum): 128 + signum for signum in signal.valid_signals()}

log = logging.getLogger(__name__)


def supervise(submission: str) -> None:
    """Train the run that a submission's folder has for this task of its array; exits with the worker's exit code.

    After a machine failure the job is requeued, unless the run's retries are used up.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    sys.exit(_supervise(Path(submission)))


def _supervise(submission: Path) -> int:
    content = read_jobs(submission)
    task = int(os.environ.get("SLURM_ARRAY_TASK_ID", 0)) if content is not None and len(content["jobs"]) > 1 else 0
    if content is None or task >= len(content["jobs"]):
        log.error("%s: missing, corrupt, or without task %d; submit the run again", submission / JOBS, task)
        return ExitCode.USER_ERROR
    if not Path(attnzoo.__file__).is_relative_to(content["code"]):
        log.error("attnzoo was imported from %s instead of the snapshot %s", attnzoo.__file__, content["code"])
        return ExitCode.USER_ERROR
    recorded, own = read_job(submission), slurm.array_job_id(attempts.job_id() or "")
    # otherwise the sweep's folder was deleted while this job was queued, and submitted again
    if recorded not in (None, own) and _job_in_ledger(submission) != own:
        log.error("%s is now a submission of job %s; job %s trains nothing", submission, recorded, own)
        return ExitCode.USER_ERROR
    job = content["jobs"][task]
    return _Supervisor(RunFolder(job["run"]), job["nodes"], job["processes"], job["retries"]).supervise()


def _job_in_ledger(submission: Path) -> str | None:
    """The id of the job of a submission by the ledger, in case the one in its folder is damaged; None if not known."""
    try:
        job: str | None = Ledger(submission.parents[1]).read()["submissions"][submission.name]["job"]
    except (UserError, KeyError):
        return None
    return job


class _Supervisor:
    def __init__(self, run: RunFolder, nodes: int, processes: int, retries: int):
        self.run, self.nodes, self.processes, self.retries = run, nodes, processes, retries
        self.job = attempts.job_id() or ""
        self.start_time, self.start_step = time.time(), run.last_step()
        self.log_offset = 0
        self.time_limit: float | None = None  # seconds since the epoch
        self.got_sigterm = False  # SLURM is ending the job, to cancel or to requeue it

    def supervise(self) -> int:
        """Run the workers to their end and handle the outcome; returns the exit code."""
        if corruption := self.run.corruption():
            log.error("%s", corruption)
            return ExitCode.USER_ERROR
        if self.run.read_status()["state"] == "done":
            log.info("%s is done", self.run.path)
            return ExitCode.OK
        try:
            with open_for_appending(self.run.path / ".lock"):
                pass
            returncode = self._train()
            while returncode and self._controller_was_away() and self._wait_for_controller():
                log.info("SLURM's controller is back: the processes are started again")
                returncode = self._train()
            result = self._classify(returncode)
            log.info("%s: %s%s", self.run.path, result.kind, f" ({result.reason})" if result.reason else "")
            return self._handle(result)
        except OSError as error:
            log.error("%s: cannot be written (%s)", self.run.path, error.strerror)
            return ExitCode.USER_ERROR

    def _train(self) -> int | None:
        """The return code of srun; None if the time limit comes before the workers end."""
        self.log_offset = self.run.log.stat().st_size if self.run.log.exists() else 0
        with open_crash_log(self.run) as stderr:
            process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr
            )
        self._install_handlers(process)
        end = self.time_limit = self._end_time()
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if end is not None and time.time() > end - REQUEUE_MARGIN_SECONDS:
                end = self._end_time()  # it may have been extended
                if end is not None and time.time() > end - REQUEUE_MARGIN_SECONDS:
                    return None
        return process.returncode

    def _command(self) -> list[str]:
        cpus = os.environ.get("SLURM_CPUS_PER_TASK", "1")  # srun does not inherit it from the job
        options = [f"--nodes={self.nodes}", f"--ntasks={self.processes}", f"--cpus-per-task={cpus}"]
        return ["srun", "--kill-on-bad-exit=1", *options, sys.executable, "-m", WORKER_MODULE, str(self.run.path)]

    def _install_handlers(self, process: "subprocess.Popen[bytes]") -> None:
        """Keep this process running through the signals that SLURM also sends to the workers, so that they can save."""

        def forward(signum: int, frame: FrameType | None) -> None:
            process.send_signal(signum)

        def on_sigterm(signum: int, frame: FrameType | None) -> None:
            self.got_sigterm = True

        signal.signal(signal.SIGTERM, on_sigterm)
        for ignored in (signal.SIGCONT, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):  # srun would end the workers
            signal.signal(ignored, lambda signum, frame: None)
        signal.signal(signal.SIGUSR1, forward)
        signal.signal(signal.SIGUSR2, forward)

    def _end_time(self) -> float | None:
        """The job's time limit, in seconds since the epoch; None if it is unlimited or unknown."""
        try:
            return datetime.fromisoformat(slurm.end_time(self.job)).timestamp()
        except ValueError:
            return None

    def _classify(self, returncode: int | None) -> Outcome:
        """The outcome by the process that failed first: srun then kills the others."""
        if returncode is None:
            return Outcome(ExitKind.INTERRUPTED, "timeout")
        _, first = self._first_failure()
        result = outcome.classify(self.run, returncode if first is None else first, self.start_time)
        if result.kind is ExitKind.MACHINE_FAILURE and self.got_sigterm:
            return Outcome(ExitKind.INTERRUPTED, "SIGTERM")
        if result == (ExitKind.INTERRUPTED, "SIGTERM") and not self.got_sigterm:
            return Outcome(ExitKind.MACHINE_FAILURE, "killed by SIGTERM")
        past_half = self.time_limit is not None and time.time() > (self.start_time + self.time_limit) / 2
        no_progress = self.run.last_step() == self.start_step
        if result == (ExitKind.INTERRUPTED, "SIGUSR2") and past_half and no_progress:
            return Outcome(ExitKind.FAILED, "slurm.time is too short: no checkpoint was saved")
        return result

    def _handle(self, result: Outcome) -> int:
        """Record the outcome and requeue the job if that can help; returns the exit code."""
        outcome.record(self.run, result)
        if result.kind in (ExitKind.INTERRUPTED, ExitKind.MACHINE_FAILURE):  # the controller is asked below
            self._wait_for_controller()
        if result.kind is ExitKind.INTERRUPTED:
            if result.reason in REQUEUE_REASONS:
                return self._requeue()
            if slurm.was_cancelled(self.job):
                self.run.write_status(state="cancelled")
            return ExitCode.INTERRUPTED
        if result.kind is not ExitKind.MACHINE_FAILURE:
            codes = {ExitKind.DONE: ExitCode.OK, ExitKind.NOT_STARTED: ExitCode.USER_ERROR}
            return codes.get(result.kind, ExitCode.FAILED)
        if reason := outcome.fail_if_exhausted(self.run, self.retries):
            log.error("%s", reason)
            return ExitCode.FAILED
        return self._requeue(self._nodes_to_exclude())

    def _requeue(self, exclude: Collection[str] = ()) -> int:
        """Requeue the job, unless SLURM is ending or requeueing it already."""
        if not slurm.is_running(self.job):
            log.info("not requeued: job %s is no longer running", self.job)
            return ExitCode.FAILED
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # scontrol requeue sends it to this process
        log.info("requeueing job %s%s", self.job, f", excluding {', '.join(exclude)}" if exclude else "")
        slurm.requeue(self.job, exclude)
        return ExitCode.FAILED

    def _controller_was_away(self) -> bool:
        """Whether srun has started no process because SLURM's controller did not answer."""
        output = self._srun_output()
        return any(text in output for text in NO_CONTROLLER) and SRUN_ERROR.search(output) is None

    def _wait_for_controller(self) -> bool:
        """Wait until SLURM's controller answers; False if it does not for long, or the job is being ended."""
        end = time.monotonic() + CONTROLLER_SECONDS
        while not slurm.answers():
            if self.got_sigterm or time.monotonic() > end:
                return False
            time.sleep(CONTROLLER_POLL_SECONDS)
        return True

    def _nodes_to_exclude(self) -> set[str]:
        """The node that failed first, if enough others are up."""
        node, _ = self._first_failure()
        others = slurm.usable_nodes(os.environ["SLURM_JOB_PARTITION"]) - {node}
        return {node} if node and len(others) >= self.nodes else set()

    def _first_failure(self) -> tuple[str | None, int | None]:
        """(node, exit code) of the process that failed first, from srun's messages; None if unknown."""
        match = SRUN_ERROR.search(self._srun_output())
        if match is None:
            return None, None
        if match["lost"]:
            return match["lost"], ExitCode.PEER_LOST
        code = int(match["code"]) if match["code"] else SIGNAL_EXIT_CODES.get(match["signal"].strip())
        return match["node"], code

    def _srun_output(self) -> str:
        """What was written to the run's log since srun was called."""
        with open_file(self.run.log) as file:
            file.seek(self.log_offset)
            return file.read().decode(errors="replace")
