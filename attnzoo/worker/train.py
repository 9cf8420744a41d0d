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
from attnzoo.config.load import load_saved
from attnzoo.engine import distributed
from attnzoo.engine.checkpoint import Checkpoints
from attnzoo.engine.distributed import NoRendezvous, Ranks
from attnzoo.engine.interrupt import Interrupted, StopRequest
from attnzoo.engine.loop import Diverged, Trainer, count_steps
from attnzoo.engine.metrics import MetricsWriter
from attnzoo.engine.progress import Progress
from attnzoo.errors import UserError
from attnzoo.rundir import attempts, process
from attnzoo.rundir.folder import RunFolder, atomic_write
from attnzoo.rundir.heartbeat import beating
from attnzoo.rundir.lock import STALE_SECONDS, exclusive
from attnzoo.worker.tasks import build_task

log = logging.getLogger(__name__)

DONE, FAILED, REFUSED, LOST, INTERRUPTED = 0, 1, 2, 75, 130


def main(run_dir: str | Path) -> int:
    """Train the run to its end and return the exit code.

    Runs may follow each other in one process; after the last, `distributed.leave()` unless a run has failed.
    """
    run = RunFolder(run_dir)
    try:
        config = load_saved(run.config)
        torch.set_num_threads(config.threads)
        for plugin in config.plugins:
            load_plugin(plugin, where="plugins")
        ranks = distributed.join(config.device)
        if ranks.world != config.processes:
            raise UserError(f"{run.config}: processes = {config.processes}, but {ranks.world} were started")
        with ExitStack() as held:
            _lock(run, ranks, held)
            code = DONE if ranks.share(run.read_status()["state"]) == "done" else _supervise(run, config, ranks)
    except NoRendezvous as error:
        print(error, file=sys.stderr)
        return LOST
    except UserError as error:
        print(error, file=sys.stderr)
        return REFUSED
    return code


def _lock(run: RunFolder, ranks: Ranks, held: ExitStack) -> None:
    refusal = None
    if ranks.is_main:
        try:
            # a job that was moved here may come before the end of its earlier start has reached this node
            held.enter_context(exclusive(run.path, wait=STALE_SECONDS + 10 if attempts.job_id() else 0))
        except UserError as error:
            refusal = str(error)
    refusal = ranks.share(refusal)
    if refusal is not None:
        raise UserError(refusal)


def _supervise(run: RunFolder, config: ExperimentConfig, ranks: Ranks) -> int:
    """Train, and record how it ended."""
    with _logging(run, ranks), StopRequest() as stop, beating(run) if ranks.is_main else nullcontext():
        if any(ranks.gather(stop.number)):
            log.info("stopped before it began")
            return INTERRUPTED
        try:
            try:
                _train(run, config, ranks, stop)
            except Interrupted:
                _record_interrupt(run, ranks, max(ranks.gather(stop.number)))
                return INTERRUPTED
        except KeyboardInterrupt:
            _record_interrupt(run, ranks, signal.SIGINT)
            return INTERRUPTED
        except (Diverged, UserError) as error:
            log.error("%s", error)
            _record_failure(run, str(error))
            return FAILED
        except Exception as error:
            if ranks.world > 1 and distributed.lost_peer(error):
                log.error("rank %d: another process of the run is gone (%s)", ranks.rank, str(error).splitlines()[0])
                return LOST
            log.exception("rank %d failed", ranks.rank)
            _record_failure(run, f"{type(error).__name__}: {error}")
            return FAILED
        if ranks.is_main:
            run.release()
            attempts.end(run, "done")
    return DONE


def _record_interrupt(run: RunFolder, ranks: Ranks, number: int) -> None:
    last = Checkpoints(run.checkpoints).last()
    state = f"saved as {last}" if last else "nothing to save yet"
    name = signal.Signals(number).name if number else "a request"
    log.info("interrupted by %s; %s. Run the same command again to resume.", name, state)
    if ranks.is_main:
        run.write_status(state="interrupted", signal=name)
        attempts.end(run, "interrupted", name)


def _record_failure(run: RunFolder, error: str) -> None:
    """Note the error, unless another rank has: its end is what makes the other ranks' exchanges fail."""
    if run.read_status()["state"] == "failed":
        return
    try:
        run.release()  # the error itself may be that the disk is full
        run.write_status(state="failed", error=error)
        attempts.end(run, "failed", error)
    except OSError as refusal:
        log.error("%s: the failure cannot be noted (%s)", run.path, refusal.strerror)


def _train(run: RunFolder, config: ExperimentConfig, ranks: Ranks, stop: StopRequest) -> None:
    if ranks.is_main:
        run.write_status(state="running", error=None, signal=None, job=attempts.job_id(), **process.myself())
        run.reserve()
        _check_retries(run, config)
        with atomic_write(run.environment) as file:
            json.dump(environment.collect_environment(ranks.device, ranks.world), file, indent=1)
    task = build_task(config, ranks)
    steps, _ = count_steps(config.train, task.batches_per_epoch)
    progress = Progress(run if ranks.is_main else None, steps)
    trainer = Trainer(task, config.train, ranks, Checkpoints(run.checkpoints), progress, stop, config.seed)
    for group in trainer.optimizer.param_groups:
        count = sum(parameter.numel() for parameter in group["params"])
        log.info("%d parameters: lr x %g, weight decay %g", count, group["lr_scale"], group["weight_decay"])
    resumed = trainer.restore()
    if ranks.is_main:
        attempts.begin(run, trainer.step, lost=_steps_done(run) - trainer.step)
    progress.beat(now=True, step=trainer.step)
    metrics = MetricsWriter(run, resumed) if ranks.is_main else None
    model = trainer.parallel.whole(trainer.model)
    if metrics is not None and metrics.last("cost/ms") is None:
        cost = task.cost(model)
        row = {"cost/params": cost.params, "cost/gflops": cost.gflops, "cost/ms": cost.ms}
        progress.report(metrics.write(trainer.step, row))
    del model
    try:
        trainer.run(metrics)
    except (Diverged, Interrupted):
        progress.beat(now=True)  # the step that it came to
        raise
    if metrics is not None:
        metrics.close()
    progress.beat(now=True, state="done")


def _check_retries(run: RunFolder, config: ExperimentConfig) -> None:
    """Raise UserError when the machine has failed under this run too often."""
    retries = config.retries if config.slurm.retries is None or not attempts.job_id() else config.slurm.retries
    if reason := attempts.exhausted(run, retries):
        raise UserError(reason)


def _steps_done(run: RunFolder) -> int:
    """The last step that earlier starts are known to have done, saved or not."""
    rows = [row["step"] for row in run.read_metrics()]
    return max([run.last_step(), run.read_status().get("step", 0), *rows])


@contextmanager
def _logging(run: RunFolder, ranks: Ranks) -> Iterator[None]:
    """Log to log.txt and to standard output; ranks other than 0 only what goes wrong."""
    root = logging.getLogger()
    handlers: list[logging.Handler] = [logging.FileHandler(run.log), logging.StreamHandler(sys.stdout)]
    for handler in handlers:
        handler.setLevel(logging.INFO if ranks.is_main else logging.ERROR)
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


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m attnzoo.worker.train RUN_DIR")
    exit_code = main(sys.argv[1])
    if exit_code not in (FAILED, LOST):
        distributed.leave()
    sys.exit(exit_code)
