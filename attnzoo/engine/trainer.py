"""The trainer: optimiser steps, logging, evaluation and checkpoints of any task."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from attnzoo.engine import parallel
from attnzoo.engine.checkpoint import CheckpointManager, load_checkpoint
from attnzoo.engine.config import TrainConfig
from attnzoo.engine.distributed import DistContext
from attnzoo.engine.interrupt import GracefulStop, TrainingInterrupted
from attnzoo.engine.metrics import MetricsLogger
from attnzoo.engine.optim import build_optimizer, build_schedule, clip_gradients
from attnzoo.engine.progress import ProgressReporter
from attnzoo.engine.seeding import isolate_attention_draws, mix_seed, seed_generators
from attnzoo.engine.task import Forward, Observer, StepLoss, Task
from attnzoo.engine.throughput import ThroughputMeter
from attnzoo.errors import UserError
from attnzoo.rundir.metrics import PRIMARY_METRICS

log = logging.getLogger(__name__)


class TrainingDiverged(Exception):
    """A loss or the gradient norm is NaN or infinite; the message has step, losses and latest checkpoint."""


def count_steps(config: TrainConfig, batches_per_epoch: int) -> tuple[int, int]:
    """(total optimiser steps, steps per epoch). Batches that do not fill a step at the end of an epoch are dropped.

    Raises UserError if an epoch is shorter than one step.
    """
    steps_per_epoch = batches_per_epoch // config.accumulate
    if steps_per_epoch == 0:
        raise UserError(
            f"train.accumulate = {config.accumulate}: more than the {batches_per_epoch} batches of an epoch "
            "(train.accumulate or data.batch_size is too large for the data set)",
            key=("train.accumulate", "data.batch_size"),
        )
    return config.steps or (config.epochs or 0) * steps_per_epoch, steps_per_epoch


class Trainer:
    """Trains `task` to the end of `config`, from the latest checkpoint if there is one.

    Resuming is deterministic: all state is in the checkpoint or derived from the step number. Within a step the order
    is: log, checkpoint, evaluate. `record`: the config of the run as text, which its checkpoints hold.
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
        record: str = "",
    ):
        self.seed, self.record = seed, record
        self.task, self.config, self.ctx, self.checkpoints = task, config, ctx, checkpoints
        self.progress, self.stop = progress, stop
        self.steps, self.steps_per_epoch = count_steps(config, task.batches_per_epoch)
        self.step = 0  # optimiser steps done
        self.best: float | None = None
        self.throughput = ThroughputMeter(ctx.device)
        self.model = task.model.to(ctx.device)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        isolate_attention_draws(self.model, ctx.device)
        self.ema = ModelEmaV3(self.model, decay=config.ema) if config.ema is not None else None
        self.strategy = parallel.build_strategy(config.parallel, self.model, self.ema, ctx)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.schedule = build_schedule(self.optimizer, config.schedule, self.steps)
        train_model = self.strategy.train_model
        self.forward = self._autocast(self._compile(train_model))
        self._metrics: MetricsLogger | None = None
        self._observer: Observer | None = None
        self._metric_names: list[str] = []  # of the columns of the next two
        self._pending_losses: list[Tensor] = []  # local losses that were not checked for NaN yet
        self._loss_window: list[list[float]] = []  # losses since the last log, averaged over ranks
        self._last_save: tuple[int, float] = (-1, time.monotonic())  # step and time

    def run(self, metrics: MetricsLogger | None, observer: Observer | None = None) -> None:
        """Train and evaluate to the end. `metrics` and `observer` are None except on rank 0.

        Raises TrainingDiverged or TrainingInterrupted.
        """
        self._metrics, self._observer = metrics, observer
        if self._should_evaluate():
            self._evaluate()
        accumulate = self.config.accumulate
        batches = iter(self.task.batches(self.step * accumulate, self.steps_per_epoch * accumulate))
        while self.step < self.steps:
            if self.ctx.any_rank(self.stop.requested):
                self._save()
                raise TrainingInterrupted
            start_time = time.monotonic()
            self._train_step(list(islice(batches, accumulate)))
            self.progress.step(self.step, time.monotonic() - start_time)
            self.throughput.update(self.task.global_batch_size * accumulate, start_time)
            self._after_step()

    def _train_step(self, batches: list[Any]) -> None:
        self.model.train()
        # re-seed every step, so that dropout depends neither on other users of the generator nor on resuming
        seed_generators(mix_seed(self.seed, self.step, self.ctx.rank), self.ctx.device)
        self.schedule.step_update(self.step)
        normalizer = self.task.normalizer(batches)
        losses = [self._backward(batch, normalizer, sync=batch is batches[-1]) for batch in batches]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        grad_norm = self.strategy.full_tensor(clip_gradients(parameters, self.config.clip))
        self._metric_names = ["loss", *(f"loss_{part}" for part in losses[0].parts), "grad_norm"]
        rows = [torch.stack([loss.total.detach(), *loss.parts.values(), grad_norm]) for loss in losses]
        self._pending_losses.append(torch.stack(rows).mean(0))
        if self.ctx.device.type == "cpu":  # on a GPU this would synchronise every step
            self._check_finite(self.step + 1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model)

    def _backward(self, batch: Any, normalizer: Any, sync: bool) -> StepLoss:
        """Forward and backward of one batch; gradients are averaged over the ranks if `sync`."""
        with self.strategy.gradient_sync(sync):
            loss = self.task.loss(self.forward, batch, normalizer)
            (loss.total / self.config.accumulate).backward()
        return StepLoss(loss.total, {name: part.detach() for name, part in loss.parts.items()})

    def _check_finite(self, step: int) -> None:
        """Average the losses up to `step` over ranks. Raises TrainingDiverged at the first that is not finite."""
        if not self._pending_losses:
            return
        values = self.ctx.all_reduce_mean(torch.stack(self._pending_losses)).tolist()
        self._pending_losses.clear()
        for number, row in enumerate(values, start=step - len(values) + 1):
            if not all(map(math.isfinite, row)):
                losses = ", ".join(f"{name} {value:.4g}" for name, value in zip(self._metric_names, row, strict=True))
                latest = self.checkpoints.latest() or "none yet"
                raise TrainingDiverged(
                    f"step {number}: the loss or its gradient is not finite ({losses}); latest checkpoint: {latest}"
                )
        self._loss_window += values

    def _after_step(self) -> None:
        if self.step % self.config.log_every == 0 or self.step == self.steps:
            self._check_finite(self.step)
            self._log_metrics(self._train_metrics() | self.throughput.compute())
        every = self.config.checkpoint_every
        time_due = time.monotonic() - self._last_save[1] > 60 * self.config.checkpoint_minutes
        if self.ctx.any_rank(time_due or bool(every and self.step % every == 0)):
            self._save()
        if self._should_evaluate():
            self._save()
            self._evaluate()

    def _train_metrics(self) -> dict[str, float]:
        """Mean losses since the last log, and the base learning rate."""
        means = torch.tensor(self._loss_window, dtype=torch.float64).mean(0).tolist()
        self._loss_window.clear()
        lr = max(group["lr"] / group["lr_scale"] for group in self.optimizer.param_groups)
        return {f"train/{name}": mean for name, mean in zip(self._metric_names, means, strict=True)} | {"train/lr": lr}

    def _log_metrics(self, values: Mapping[str, float]) -> None:
        if self._metrics is not None and values:
            self.progress.log_metrics(self._metrics.write(self.step, values))

    def _should_evaluate(self) -> bool:
        every = self.config.eval_every
        return self.step > 0 and (self.step == self.steps or bool(every and self.step % every == 0))

    def _evaluate(self) -> None:
        """Evaluate the EMA weights, or the weights without EMA, and keep the checkpoint if the metric is the best."""
        model = self.ema.module if self.ema is not None else self.model
        model.eval()
        # BatchNorm statistics differ between ranks: use those of rank 0, as the checkpoint does
        self.ctx.broadcast_tensors(model.buffers())
        model = self.strategy.unsharded_model(model)
        forward = self._autocast(model)
        with torch.no_grad():
            values = self.task.evaluate(forward, self._heartbeat)
        if self._observer is not None:
            self._log_metrics(self._observer(model, forward, self.step, self.step == self.steps))
        self._log_metrics({f"val/{name}": value for name, value in values.items()})
        value = values[PRIMARY_METRICS[self.task.name].name]
        if math.isfinite(value) and (self.best is None or value > self.best):
            self.best = value
            path = self.checkpoints.latest()
            if self.ctx.is_main and path is not None:
                self.checkpoints.save_best(path)

    def _heartbeat(self) -> None:
        """Called during evaluation. A single process may stop here: the checkpoint of this step is saved."""
        self.progress.update()
        if self.stop.requested and self.ctx.world_size == 1:
            raise TrainingInterrupted

    def _save(self) -> None:
        """Save a checkpoint unless this step has one. Raises TrainingDiverged first if a loss is not finite."""
        if self.step in (0, self._last_save[0]):
            return
        self._check_finite(self.step)
        # before the checkpoint: a power cut never leaves a checkpoint without its rows
        num_rows = self._metrics.sync() if self._metrics is not None else 0
        state = self.strategy.full_state_dict(self._state()) | {"num_rows": num_rows}
        if self.ctx.is_main:
            self.checkpoints.save(state, self.step)
        self._last_save = (self.step, time.monotonic())

    def _state(self) -> dict[str, Any]:
        """Everything but the random generators, which are seeded by step, and the position in the data, the step."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "epoch": self.step // self.steps_per_epoch,
            "steps_per_epoch": self.steps_per_epoch,
            "seed": self.seed,
            "best": self.best,
            "metric_names": self._metric_names,
            "loss_window": self._loss_window,
            "config": self.record,
        }

    def resume(self, check: Callable[[str, Path], None] | None = None) -> int:
        """Load the newest valid checkpoint, if any; returns the number of rows of metrics that belong to it.

        `check` is called with the record in the checkpoint, if it has one, and the checkpoint. Raises what that raises,
        and UserError if the checkpoint belongs to another seed or data set.
        """
        path = self.ctx.broadcast_object(self.checkpoints.newest_valid() if self.ctx.is_main else None)
        if path is None:
            return 0
        state = load_checkpoint(path, self.ctx.device)
        if check is not None and state.get("config"):
            check(state["config"], path)
        for key, current in (("steps_per_epoch", self.steps_per_epoch), ("seed", self.seed)):
            if state[key] != current:
                raise UserError(
                    f"{path}: saved with {key} = {state[key]}, now {current}: the data set or the config changed"
                )
        self.strategy.load_model(self.model, state["model"])
        if self.ema is not None:
            self.strategy.load_model(self.ema.module, state["ema"])
        self.strategy.load_optimizer(self.optimizer, state["optimizer"])
        self.step, self.best = state["step"], state["best"]
        self._metric_names, self._loss_window = state["metric_names"], state["loss_window"]
        self._last_save = (self.step, time.monotonic())
        log.info("resuming from %s", path)
        return int(state["num_rows"])

    def _compile(self, model: nn.Module) -> Any:
        """Raises UserError for CUDA graphs without a GPU."""
        if self.config.cuda_graphs and self.ctx.device.type != "cuda":
            raise UserError("train.cuda_graphs = true: needs a GPU, but the device is cpu", key="train.cuda_graphs")
        if self.config.cuda_graphs and self.config.compile:
            return torch.compile(model, mode="reduce-overhead")
        if self.config.cuda_graphs:
            return torch.compile(model, backend="cudagraphs")  # the same kernels as in eager mode
        return torch.compile(model) if self.config.compile else model

    def _autocast(self, model: Any) -> Forward:
        if self.config.precision == "fp32":
            return model

        def forward(*inputs: Any) -> Any:
            with torch.autocast(self.ctx.device.type, torch.bfloat16):
                return model(*inputs)

        return forward
