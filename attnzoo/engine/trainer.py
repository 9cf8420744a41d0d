"""The training loop: optimiser steps, logging, evaluation and checkpoints of any task."""

import hashlib
import logging
import math
import time
from itertools import islice
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from attnzoo.engine import parallel
from attnzoo.engine.checkpoint import CheckpointManager, load_checkpoint
from attnzoo.engine.config import TrainConfig
from attnzoo.engine.distributed import DistContext
from attnzoo.engine.interrupt import GracefulStop, TrainingInterrupted
from attnzoo.engine.metrics import MetricsLogger
from attnzoo.engine.optim import build_optimizer, build_schedule, clip_gradients
from attnzoo.engine.progress import ProgressReporter
from attnzoo.engine.task import Forward, StepLoss, Task
from attnzoo.engine.throughput import ThroughputMeter
from attnzoo.errors import UserError

log = logging.getLogger(__name__)


class TrainingDiverged(Exception):
    """A loss or a gradient became NaN or infinite. The message names the step, the losses and the last checkpoint."""


def mix_seed(*parts: int) -> int:
    """A seed that depends on all of `parts`; neighbouring parts give unrelated seeds."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def count_steps(config: TrainConfig, batches_per_epoch: int) -> tuple[int, int]:
    """(optimiser steps of the run, of one epoch). Batches that do not fill a step at an epoch's end are left out."""
    per_epoch = batches_per_epoch // config.accumulate
    if per_epoch == 0:
        raise UserError(
            f"train: an epoch has {batches_per_epoch} batches, too few for one step of {config.accumulate} "
            "(data.batch_size or train.accumulate is too large for the data set)"
        )
    return config.steps or (config.epochs or 0) * per_epoch, per_epoch


class Trainer:
    """Trains `task` from its start or its last checkpoint to the end of `config`.

    Everything that a step depends on is in the checkpoint or follows from the step number, so an interrupted run
    repeats the uninterrupted one. A checkpoint is made after a step's training row and before its evaluation.
    """

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        ctx: DistContext,
        checkpoints: CheckpointManager,
        progress: ProgressReporter,
        stop: GracefulStop,
        seed: int = 0,
    ):
        self.seed = seed
        self.task, self.config, self.ctx, self.checkpoints = task, config, ctx, checkpoints
        self.progress, self.stop = progress, stop
        self.steps, self.steps_per_epoch = count_steps(config, task.batches_per_epoch)
        self.step = 0  # optimiser steps done
        self.best: float | None = None
        self.throughput = ThroughputMeter(ctx.device)
        self.model = task.model.to(ctx.device)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.ema = ModelEmaV3(self.model, decay=config.ema) if config.ema is not None else None
        self.strategy = parallel.build_strategy(config.parallel, self.model, self.ema, ctx)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.schedule = build_schedule(self.optimizer, config.schedule, self.steps)
        train_model = self.strategy.train_model
        self.forward = self._autocast(torch.compile(train_model) if config.compile else train_model)
        self._metric_names: list[str] = []  # of the columns of what follows
        self._pending_losses: list[Tensor] = []  # this rank's losses of the steps since the last check
        self._loss_window: list[list[float]] = []  # all ranks' losses of the steps since the last row
        self._last_save: tuple[int, float] = (-1, time.monotonic())  # step and time of the last checkpoint

    def run(self, metrics: MetricsLogger | None) -> None:
        """Train and evaluate to the end; rank 0 gives `metrics`. Raises TrainingDiverged or TrainingInterrupted."""
        if self._should_evaluate():
            self._evaluate(metrics)
        size = self.config.accumulate
        source = iter(self.task.batches(self.step * size, self.steps_per_epoch * size))
        while self.step < self.steps:
            if self.ctx.any_rank(self.stop.requested):
                self._save()
                raise TrainingInterrupted
            started = time.monotonic()
            self._train_step(list(islice(source, size)))
            self.progress.step(self.step, time.monotonic() - started)
            self.throughput.update(self.task.global_batch_size * size, started)
            self._after_step(metrics)

    def _train_step(self, batches: list[Any]) -> None:
        self.model.train()
        # dropout is a function of seed, step and rank: nothing that draws in between, or a resume, can shift it
        self._seed(mix_seed(self.seed, self.step, self.ctx.rank))
        self.schedule.step_update(self.step)
        normalizer = self.task.normalizer(batches)
        losses = [self._backward(batch, normalizer, last=batch is batches[-1]) for batch in batches]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = self.strategy.full_tensor(clip_gradients(parameters, self.config.clip))
        self._metric_names = ["loss", *(f"loss_{part}" for part in losses[0].parts), "grad_norm"]
        rows = [torch.stack([loss.total.detach(), *loss.parts.values(), norm]) for loss in losses]
        self._pending_losses.append(torch.stack(rows).mean(0))
        if self.ctx.device.type == "cpu":  # elsewhere reading a loss waits for the device
            self._check_finite(self.step + 1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model)

    def _seed(self, seed: int) -> None:
        """Seed what dropout draws from; torch.manual_seed would cost half a millisecond where there is no GPU."""
        torch.default_generator.manual_seed(seed)
        if self.ctx.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _backward(self, batch: Any, normalizer: Any, last: bool) -> StepLoss:
        """Add one batch's gradients; ranks exchange them with the last batch of a step."""
        with self.strategy.gradient_sync(last):
            loss = self.task.loss(self.forward, batch, normalizer)
            (loss.total / self.config.accumulate).backward()
        return StepLoss(loss.total, {name: part.detach() for name, part in loss.parts.items()})

    def _check_finite(self, step: int) -> None:
        """Read the losses up to `step`, average them over ranks and raise TrainingDiverged at the first that is not finite."""
        if not self._pending_losses:
            return
        values = self.ctx.all_reduce_mean(torch.stack(self._pending_losses)).tolist()
        self._pending_losses.clear()
        for number, row in enumerate(values, start=step - len(values) + 1):
            if not all(map(math.isfinite, row)):
                losses = ", ".join(f"{name} {value:.4g}" for name, value in zip(self._metric_names, row, strict=True))
                last = self.checkpoints.latest()
                good = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
                raise TrainingDiverged(f"step {number}: the loss or its gradient is not finite ({losses}); {good}")
        self._loss_window += values

    def _after_step(self, metrics: MetricsLogger | None) -> None:
        if self.step % self.config.log_every == 0 or self.step == self.steps:
            self._check_finite(self.step)
            self._log_metrics(metrics, self._train_metrics() | self.throughput.compute())
        every = self.config.checkpoint_every
        late = time.monotonic() - self._last_save[1] > 60 * self.config.checkpoint_minutes
        if self.ctx.any_rank(late or bool(every and self.step % every == 0)):
            self._save()
        if self._should_evaluate():
            self._save()
            self._evaluate(metrics)

    def _train_metrics(self) -> dict[str, float]:
        """Means over the steps since the last row; the learning rate of parameters without a factor of their own."""
        means = torch.tensor(self._loss_window, dtype=torch.float64).mean(0).tolist()
        self._loss_window.clear()
        rate = max(group["lr"] / group["lr_scale"] for group in self.optimizer.param_groups)
        return {f"train/{name}": mean for name, mean in zip(self._metric_names, means, strict=True)} | {
            "train/lr": rate
        }

    def _log_metrics(self, metrics: MetricsLogger | None, row: dict[str, float]) -> None:
        if metrics is not None:
            self.progress.log_metrics(metrics.write(self.step, row))

    def _should_evaluate(self) -> bool:
        every = self.config.eval_every
        return self.step > 0 and (self.step == self.steps or bool(every and self.step % every == 0))

    def _evaluate(self, metrics: MetricsLogger | None) -> None:
        """Evaluate the averaged weights if there are any; the checkpoint of this step becomes the best if it is."""
        model = self.ema.module if self.ema is not None else self.model
        model.eval()
        self.ctx.broadcast_tensors(
            model.buffers()
        )  # each rank's BatchNorm saw its own images; the checkpoint holds rank 0's
        with torch.no_grad():
            values = self.task.evaluate(self._autocast(self.strategy.unsharded_model(model)), self._heartbeat)
        self._log_metrics(metrics, {f"val/{name}": value for name, value in values.items()})
        value = values[self.task.best_metric]
        if math.isfinite(value) and (self.best is None or value > self.best):
            self.best = value
            path = self.checkpoints.latest()
            if self.ctx.is_main and path is not None:
                self.checkpoints.save_best(path)

    def _heartbeat(self) -> None:
        """A sign of life during an evaluation, whose checkpoint is made: one process alone can stop here."""
        self.progress.update()
        if self.stop.requested and self.ctx.world_size == 1:
            raise TrainingInterrupted

    def _save(self) -> None:
        """Checkpoint this step, unless that is done. A state that is not finite never gets here."""
        if self.step in (0, self._last_save[0]):
            return
        self._check_finite(self.step)
        state = self.strategy.full_state_dict(self._state())
        if self.ctx.is_main:
            self.checkpoints.save(state, self.step)
        self._last_save = (self.step, time.monotonic())

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "epoch": self.step // self.steps_per_epoch,
            "steps_per_epoch": self.steps_per_epoch,  # with the step: the position in the epoch
            "seed": self.seed,  # with the step: the state of the random numbers, on every rank
            "best": self.best,
            "names": self._metric_names,
            "window": self._loss_window,
        }

    def resume(self) -> int | None:
        """Continue from the last sound checkpoint; returns its step, or None where there is none."""
        path = self.ctx.broadcast_object(self.checkpoints.newest_valid() if self.ctx.is_main else None)
        if path is None:
            return None
        state = load_checkpoint(path, self.ctx.device)
        for key, now in (("steps_per_epoch", self.steps_per_epoch), ("seed", self.seed)):
            if state[key] != now:
                raise UserError(f"{path}: made with {key} = {state[key]}, now {now}; the data or the config changed")
        self.strategy.load_model(self.model, state["model"])
        if self.ema is not None:
            self.strategy.load_model(self.ema.module, state["ema"])
        self.strategy.load_optimizer(self.optimizer, state["optimizer"])
        self.step, self.best = state["step"], state["best"]
        self._metric_names, self._loss_window = state["names"], state["window"]
        self._last_save = (self.step, time.monotonic())
        log.info("resuming from %s", path)
        return self.step

    def _autocast(self, model: Any) -> Forward:
        if self.config.precision == "fp32":
            return model

        def forward(*inputs: Any) -> Any:
            with torch.autocast(self.ctx.device.type, torch.bfloat16):
                return model(*inputs)

        return forward
