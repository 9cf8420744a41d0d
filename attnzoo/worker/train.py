"""Train one run: `python -m attnzoo.worker.train RUN_DIR`, alone or under torchrun or srun.

The run is what RUN_DIR/config.yaml says; a run with checkpoints is resumed, a finished one left alone. Exit code:
0 done, 1 failed (status.json has the error, log.txt the traceback), 2 refused with nothing touched, 75 another process
of the run is gone, 130 interrupted.
"""

import json
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch

from attnzoo import environment
from attnzoo.attention import load_plugin
from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.load import load
from attnzoo.engine import distributed
from attnzoo.engine.checkpoint import CheckpointManager
from attnzoo.engine.distributed import DistContext, RendezvousError
from attnzoo.engine.interrupt import GracefulStop, TrainingInterrupted
from attnzoo.engine.metrics import MetricsLogger
from attnzoo.engine.progress import ProgressReporter
from attnzoo.engine.trainer import Trainer, TrainingDiverged, count_steps
from attnzoo.errors import ExitCode, UserError
from attnzoo.rundir import attempts, process
from attnzoo.rundir.folder import RunFolder, atomic_write
from attnzoo.rundir.heartbeat import heartbeat_thread
from attnzoo.rundir.lock import STALE_SECONDS, run_lock
from attnzoo.worker.tasks import build_task

log = logging.getLogger(__name__)


def train_run(run_dir: str | Path) -> ExitCode:
    """Train the run to its end and return the exit code.

    Runs may follow each other in one process; after the last, `distributed.shutdown()` unless a run has failed.
    """
    run = RunFolder(run_dir)
    try:
        config = load(run.config)
        torch.set_num_threads(config.threads)
        for plugin in config.plugins:
            load_plugin(plugin, where="plugins")
        ctx = distributed.init(config.device)
        if ctx.world_size != config.processes:
            raise UserError(f"{run.config}: processes = {config.processes}, but {ctx.world_size} were started")
        with ExitStack() as stack:
            _lock(run, ctx, stack)
            code = (
                ExitCode.OK
                if ctx.broadcast_object(run.read_status()["state"]) == "done"
                else _run_and_record(run, config, ctx)
            )
    except RendezvousError as error:
        print(error, file=sys.stderr)
        return ExitCode.PEER_LOST
    except UserError as error:
        print(error, file=sys.stderr)
        return ExitCode.USER_ERROR
    return code


def _lock(run: RunFolder, ctx: DistContext, stack: ExitStack) -> None:
    refusal = None
    if ctx.is_main:
        try:
            # a job that was moved here may come before the end of its earlier start has reached this node
            stack.enter_context(run_lock(run.path, wait=STALE_SECONDS + 10 if attempts.job_id() else 0))
        except UserError as error:
            refusal = str(error)
    refusal = ctx.broadcast_object(refusal)
    if refusal is not None:
        raise UserError(refusal)


def _run_and_record(run: RunFolder, config: ExperimentConfig, ctx: DistContext) -> ExitCode:
    """Train, and record how it ended."""
    with _logging(run, ctx), GracefulStop() as stop, heartbeat_thread(run) if ctx.is_main else nullcontext():
        if any(ctx.all_gather_object(stop.signum)):
            log.info("stopped before it began")
            return ExitCode.INTERRUPTED
        try:
            try:
                _train(run, config, ctx, stop)
            except TrainingInterrupted:
                _record_interrupt(run, ctx, max(ctx.all_gather_object(stop.signum)))
                return ExitCode.INTERRUPTED
        except KeyboardInterrupt:
            _record_interrupt(run, ctx, signal.SIGINT)
            return ExitCode.INTERRUPTED
        except (TrainingDiverged, UserError) as error:
            log.error("%s", error)
            _record_failure(run, str(error))
            return ExitCode.FAILED
        except Exception as error:
            if ctx.world_size > 1 and distributed.is_peer_lost(error):
                log.error("rank %d: another process of the run is gone (%s)", ctx.rank, str(error).splitlines()[0])
                return ExitCode.PEER_LOST
            log.exception("rank %d failed", ctx.rank)
            _record_failure(run, f"{type(error).__name__}: {error}")
            return ExitCode.FAILED
        if ctx.is_main:
            run.free_reserved_space()
            attempts.record_end(run, "done")
    return ExitCode.OK


def _record_interrupt(run: RunFolder, ctx: DistContext, number: int) -> None:
    last = CheckpointManager(run.checkpoints).latest()
    state = f"saved as {last}" if last else "nothing to save yet"
    name = signal.Signals(number).name if number else "a request"
    log.info("interrupted by %s; %s. Run the same command again to resume.", name, state)
    if ctx.is_main:
        run.write_status(state="interrupted", signal=name)
        attempts.record_end(run, "interrupted", name)


def _record_failure(run: RunFolder, error: str) -> None:
    """Note the error, unless another rank has: its end is what makes the other ranks' exchanges fail."""
    if run.read_status()["state"] == "failed":
        return
    try:
        run.free_reserved_space()  # the error itself may be that the disk is full
        run.write_status(state="failed", error=error)
        attempts.record_end(run, "failed", error)
    except OSError as refusal:
        log.error("%s: the failure cannot be noted (%s)", run.path, refusal.strerror)


def _train(run: RunFolder, config: ExperimentConfig, ctx: DistContext, stop: GracefulStop) -> None:
    if ctx.is_main:
        run.write_status(state="running", error=None, signal=None, job=attempts.job_id(), **process.current())
        run.reserve_space()
        _check_retries(run, config)
        with atomic_write(run.environment) as file:
            json.dump(environment.describe(ctx.device, ctx.world_size), file, indent=1)
    task = build_task(config, ctx)
    steps, _ = count_steps(config.train, task.batches_per_epoch)
    progress = ProgressReporter(run if ctx.is_main else None, steps)
    trainer = Trainer(task, config.train, ctx, CheckpointManager(run.checkpoints), progress, stop, config.seed)
    for group in trainer.optimizer.param_groups:
        count = sum(parameter.numel() for parameter in group["params"])
        log.info("%d parameters: lr x %g, weight decay %g", count, group["lr_scale"], group["weight_decay"])
    resume_step = trainer.resume()
    if ctx.is_main:
        attempts.record_start(run, trainer.step, lost=_max_recorded_step(run) - trainer.step)
    progress.update(force=True, step=trainer.step)
    metrics = MetricsLogger(run, resume_step) if ctx.is_main else None
    model = trainer.strategy.unsharded_model(trainer.model)
    if metrics is not None and metrics.latest("cost/ms") is None:
        cost = task.cost(model)
        row = {"cost/params": cost.params, "cost/gflops": cost.gflops, "cost/ms": cost.ms}
        progress.log_metrics(metrics.write(trainer.step, row))
    del model
    try:
        trainer.run(metrics)
    except (TrainingDiverged, TrainingInterrupted):
        progress.update(force=True)  # the step that it came to
        raise
    if metrics is not None:
        metrics.close()
    progress.update(force=True, state="done")


def _check_retries(run: RunFolder, config: ExperimentConfig) -> None:
    """Raise UserError when the machine has failed under this run too often."""
    retries = config.retries if config.slurm.retries is None or not attempts.job_id() else config.slurm.retries
    if reason := attempts.retries_exhausted(run, retries):
        raise UserError(reason)


def _max_recorded_step(run: RunFolder) -> int:
    """The last step that earlier starts are known to have done, saved or not."""
    rows = [row["step"] for row in run.read_metrics()]
    return max([run.last_step(), run.read_status().get("step", 0), *rows])


@contextmanager
def _logging(run: RunFolder, ctx: DistContext) -> Iterator[None]:
    """Log to log.txt and to standard output; ranks other than 0 only what goes wrong."""
    root = logging.getLogger()
    handlers: list[logging.Handler] = [logging.FileHandler(run.log), logging.StreamHandler(sys.stdout)]
    for handler in handlers:
        handler.setLevel(logging.INFO if ctx.is_main else logging.ERROR)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        root.addHandler(handler)
    level = root.level
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
