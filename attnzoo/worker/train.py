"""Train one run: what `python -m attnzoo.worker RUN_DIR` does in each of its processes."""

import json
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch

from attnzoo import environment, ops
from attnzoo.attention import load_plugin
from attnzoo.config.experiment import ExperimentConfig, ProbeExperiment
from attnzoo.config.load import load_saved
from attnzoo.config.options import check_versions
from attnzoo.config.record import check_record, to_record
from attnzoo.engine import distributed
from attnzoo.engine.checkpoint import CheckpointManager
from attnzoo.engine.distributed import DistContext, RendezvousError
from attnzoo.engine.interrupt import GracefulStop, TrainingInterrupted
from attnzoo.engine.metrics import MetricsLogger
from attnzoo.engine.progress import ProgressReporter
from attnzoo.engine.seeding import stream_seed
from attnzoo.engine.trainer import Trainer, TrainingDiverged, count_steps
from attnzoo.errors import ExitCode, UserError, printable
from attnzoo.inference.training import TrainingPictures
from attnzoo.rundir import attempts, process
from attnzoo.rundir.folder import RunFolder, atomic_write, check_config
from attnzoo.rundir.heartbeat import heartbeat_thread
from attnzoo.rundir.lock import STALE_SECONDS, run_lock
from attnzoo.rundir.metrics import is_final
from attnzoo.streams import EchoHandler
from attnzoo.worker.tasks import build_task

log = logging.getLogger(__name__)


def train_run(run_dir: str | Path) -> ExitCode:
    """Train RUN_DIR/config.yaml, alone or as one of the processes of torchrun or srun; returns the exit code.

    Resumes from checkpoints; a finished run is left alone. OK: done. FAILED: status.json has the error, log.txt the
    traceback. USER_ERROR: nothing was changed. PEER_LOST: another process of the run has exited. INTERRUPTED.

    May be called for one run after the other; call `distributed.shutdown()` after the last unless a run has failed.
    """
    run = RunFolder(run_dir)
    try:
        check_config(run.config)
        config = load_saved(run.config)
        torch.set_num_threads(config.threads)
        for plugin in config.plugins:
            load_plugin(plugin, where="plugins")
        check_versions(config)
        ctx = distributed.init(config.device)
        if ctx.world_size != config.processes:
            raise UserError(f"{run.config}: processes = {config.processes}, but the world size is {ctx.world_size}")
        with ExitStack() as stack:
            _lock(run, ctx, stack)
            if ctx.broadcast_object(run.read_status()["state"]) == "done":
                return ExitCode.OK
            return _run_and_record(run, config, ctx)
    except RendezvousError as error:
        print(printable(str(error)), file=sys.stderr)
        return ExitCode.PEER_LOST
    except UserError as error:
        print(printable(str(error)), file=sys.stderr)
        return ExitCode.USER_ERROR


def _lock(run: RunFolder, ctx: DistContext, stack: ExitStack) -> None:
    reason = None
    if ctx.is_main:
        try:
            # after a requeue to another node, the heartbeat of the job's previous start may still look fresh
            run.check_kinds()
            stack.enter_context(run_lock(run.path, wait=STALE_SECONDS + 10 if attempts.job_id() else 0))
        except UserError as error:
            reason = str(error)
    reason = ctx.broadcast_object(reason)
    if reason is not None:
        raise UserError(reason)


def _run_and_record(run: RunFolder, config: ExperimentConfig, ctx: DistContext) -> ExitCode:
    """Train, and record how it ended."""
    with _logging(run, ctx), GracefulStop() as stop, heartbeat_thread(run) if ctx.is_main else nullcontext():
        if any(ctx.all_gather_object(stop.signum)):
            log.info("interrupted before training started")
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
                log.error("rank %d: lost a peer process (%s)", ctx.rank, str(error).splitlines()[0])
                return ExitCode.PEER_LOST
            log.exception("rank %d failed", ctx.rank)
            _record_failure(run, f"{type(error).__name__}: {error}")
            return ExitCode.FAILED
        if ctx.is_main:
            run.free_reserved_space()
            attempts.record_end(run, "done")
    return ExitCode.OK


def _record_interrupt(run: RunFolder, ctx: DistContext, signum: int) -> None:
    checkpoint = CheckpointManager(run.checkpoints).latest() or "none yet"
    name = signal.Signals(signum).name if signum else "a request"
    log.info("interrupted by %s; latest checkpoint: %s. Run the same command again to resume.", name, checkpoint)
    if ctx.is_main:
        run.write_status(state="interrupted", signal=name)
        attempts.record_end(run, "interrupted", name)


def _record_failure(run: RunFolder, error: str) -> None:
    """Record the error, unless another rank has: the first is the cause of the others."""
    if run.read_status()["state"] == "failed":
        return
    try:
        run.free_reserved_space()  # the error may be a full disk
        run.write_status(state="failed", error=error)
        attempts.record_end(run, "failed", error)
    except OSError as os_error:
        log.error("%s: cannot record the failure (%s)", run.path, os_error.strerror)


def _train(run: RunFolder, config: ExperimentConfig, ctx: DistContext, stop: GracefulStop) -> None:
    if ctx.is_main:
        started = {"job": attempts.job_id(), "config_sha256": run.config_hash(), **process.current()}
        run.write_status(state="running", error=None, signal=None, **started)
        run.reserve_space()
        _check_retries(run, config)
        with atomic_write(run.environment) as file:
            json.dump(environment.collect_environment(ctx.device, ctx.world_size), file, indent=1)
    task = build_task(config, ctx)
    steps, _ = count_steps(config.train, task.batches_per_epoch)
    seed = stream_seed(config.seed, config.train.stream)
    progress = ProgressReporter(run if ctx.is_main else None, steps)
    checkpoints = CheckpointManager(run.checkpoints)
    trainer = Trainer(task, config.train, ctx, checkpoints, progress, stop, seed, to_record(config))
    for group in trainer.optimizer.param_groups:
        count = sum(parameter.numel() for parameter in group["params"])
        log.info("%d parameters: lr x %g, weight decay %g", count, group["lr_scale"], group["weight_decay"])
    num_rows = trainer.resume(lambda record, checkpoint: check_record(record, checkpoint, config, run.config))
    recorded = _environment(ctx)
    if ctx.is_main:
        attempts.record_start(run, trainer.step, _max_recorded_step(run) - trainer.step, recorded)
    progress.update(force=True, step=trainer.step)
    metrics = MetricsLogger(run, num_rows) if ctx.is_main else None
    model = trainer.strategy.unsharded_model(trainer.model)
    if metrics is not None and metrics.latest("cost/ms") is None:
        cost = task.cost(model)
        row = {"cost/params": cost.params, "cost/gflops": cost.gflops, "cost/ms": cost.ms}
        progress.log_metrics(metrics.write(trainer.step, row))
    del model
    pictures = None
    if metrics is not None and config.train.pictures and not isinstance(config, ProbeExperiment):
        eval_every = config.train.eval_every
        pictures = TrainingPictures(task.val, task.num_classes, metrics, run.pictures, ctx.device, eval_every)
    try:
        trainer.run(metrics, pictures)
    except (TrainingDiverged, TrainingInterrupted):
        progress.update(force=True)  # the last step
        raise
    if metrics is not None:
        metrics.close()
        if not is_final(run.read_metrics(), steps):
            raise UserError(f"{run.metrics}: no validation metrics at step {steps}, the last (are all NaN?)")
    progress.update(force=True, state="done")


def _environment(ctx: DistContext) -> dict[str, str]:
    """What the results depend on besides the config, on all ranks: `A + B` where they differ."""
    ranks = ctx.all_gather_object(environment.result_environment(ctx.device, ops.kernels(ctx.device.type)))
    return {key: " + ".join(sorted({rank[key] for rank in ranks})) for key in ranks[0]}


def _check_retries(run: RunFolder, config: ExperimentConfig) -> None:
    """Raise UserError if the retries are exhausted."""
    retries = config.retries if config.slurm.retries is None or not attempts.job_id() else config.slurm.retries
    if reason := attempts.retries_exhausted(run, retries):
        raise UserError(reason)


def _max_recorded_step(run: RunFolder) -> int:
    """The highest step that an earlier attempt reached, saved or not."""
    rows = [row["step"] for row in run.read_metrics()]
    return max([run.last_step(), run.read_status().get("step", 0), *rows])


@contextmanager
def _logging(run: RunFolder, ctx: DistContext) -> Iterator[None]:
    """Log to log.txt and standard output; errors only on ranks other than 0."""
    root = logging.getLogger()
    handlers: list[logging.Handler] = [
        logging.FileHandler(run.log, encoding="utf-8"),
        EchoHandler(),
    ]
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
