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
from attnzoo.engine.checkpoint import Checkpoints, load
from attnzoo.engine.config import TrainConfig
from attnzoo.engine.distributed import Ranks
from attnzoo.engine.interrupt import Interrupted, StopRequest
from attnzoo.engine.metrics import MetricsWriter
from attnzoo.engine.optim import build_optimizer, build_schedule, clip_gradients
from attnzoo.engine.progress import Progress
from attnzoo.engine.speed import Speed
from attnzoo.engine.task import Forward, StepLoss, Task
from attnzoo.errors import UserError

log = logging.getLogger(__name__)


class Diverged(Exception):
    """A loss or a gradient became NaN or infinite. The message names the step, the losses and the last checkpoint."""


def derived_seed(*parts: int) -> int:
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
        ranks: Ranks,
        checkpoints: Checkpoints,
        progress: Progress,
        stop: StopRequest,
        seed: int = 0,
    ):
        self.seed = seed
        self.task, self.config, self.ranks, self.checkpoints = task, config, ranks, checkpoints
        self.progress, self.stop = progress, stop
        self.steps, self.steps_per_epoch = count_steps(config, task.batches_per_epoch)
        self.step = 0  # optimiser steps done
        self.best: float | None = None
        self.speed = Speed(ranks.device)
        self.model = task.model.to(ranks.device)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.ema = ModelEmaV3(self.model, decay=config.ema) if config.ema is not None else None
        self.parallel = parallel.build(config.parallel, self.model, self.ema, ranks)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.schedule = build_schedule(self.optimizer, config.schedule, self.steps)
        runner = self.parallel.runner
        self.forward = self._autocast(torch.compile(runner) if config.compile else runner)
        self._names: list[str] = []  # of the columns of what follows
        self._unchecked: list[Tensor] = []  # this rank's losses of the steps since the last check
        self._window: list[list[float]] = []  # all ranks' losses of the steps since the last row
        self._saved: tuple[int, float] = (-1, time.monotonic())  # step and time of the last checkpoint

    def run(self, metrics: MetricsWriter | None) -> None:
        """Train and evaluate to the end; rank 0 gives `metrics`. Raises Diverged or Interrupted."""
        if self._evaluation_due():
            self._evaluate(metrics)
        size = self.config.accumulate
        source = iter(self.task.batches(self.step * size, self.steps_per_epoch * size))
        while self.step < self.steps:
            if self.ranks.any(self.stop.requested):
                self._save()
                raise Interrupted
            started = time.monotonic()
            self._train_step(list(islice(source, size)))
            self.progress.step(self.step, time.monotonic() - started)
            self.speed.count(self.task.images_per_batch * size, started)
            self._after_step(metrics)

    def _train_step(self, batches: list[Any]) -> None:
        self.model.train()
        # dropout is a function of seed, step and rank: nothing that draws in between, or a resume, can shift it
        self._seed(derived_seed(self.seed, self.step, self.ranks.rank))
        self.schedule.step_update(self.step)
        normalizer = self.task.normalizer(batches)
        losses = [self._backward(batch, normalizer, last=batch is batches[-1]) for batch in batches]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = self.parallel.full(clip_gradients(parameters, self.config.clip))
        self._names = ["loss", *(f"loss_{part}" for part in losses[0].parts), "grad_norm"]
        rows = [torch.stack([loss.total.detach(), *loss.parts.values(), norm]) for loss in losses]
        self._unchecked.append(torch.stack(rows).mean(0))
        if self.ranks.device.type == "cpu":  # elsewhere reading a loss waits for the device
            self._check(self.step + 1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model)

    def _seed(self, seed: int) -> None:
        """Seed what dropout draws from; torch.manual_seed would cost half a millisecond where there is no GPU."""
        torch.default_generator.manual_seed(seed)
        if self.ranks.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _backward(self, batch: Any, normalizer: Any, last: bool) -> StepLoss:
        """Add one batch's gradients; ranks exchange them with the last batch of a step."""
        with self.parallel.exchange(last):
            loss = self.task.loss(self.forward, batch, normalizer)
            (loss.total / self.config.accumulate).backward()
        return StepLoss(loss.total, {name: part.detach() for name, part in loss.parts.items()})

    def _check(self, step: int) -> None:
        """Read the losses up to `step`, average them over ranks and raise Diverged at the first that is not finite."""
        if not self._unchecked:
            return
        values = self.ranks.mean(torch.stack(self._unchecked)).tolist()
        self._unchecked.clear()
        for number, row in enumerate(values, start=step - len(values) + 1):
            if not all(map(math.isfinite, row)):
                losses = ", ".join(f"{name} {value:.4g}" for name, value in zip(self._names, row, strict=True))
                last = self.checkpoints.last()
                good = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
                raise Diverged(f"step {number}: the loss or its gradient is not finite ({losses}); {good}")
        self._window += values

    def _after_step(self, metrics: MetricsWriter | None) -> None:
        if self.step % self.config.log_every == 0 or self.step == self.steps:
            self._check(self.step)
            self._write(metrics, self._training_row() | self.speed.read())
        every = self.config.checkpoint_every
        late = time.monotonic() - self._saved[1] > 60 * self.config.checkpoint_minutes
        if self.ranks.any(late or bool(every and self.step % every == 0)):
            self._save()
        if self._evaluation_due():
            self._save()
            self._evaluate(metrics)

    def _training_row(self) -> dict[str, float]:
        """Means over the steps since the last row; the learning rate of parameters without a factor of their own."""
        means = torch.tensor(self._window, dtype=torch.float64).mean(0).tolist()
        self._window.clear()
        rate = max(group["lr"] / group["lr_scale"] for group in self.optimizer.param_groups)
        return {f"train/{name}": mean for name, mean in zip(self._names, means, strict=True)} | {"train/lr": rate}

    def _write(self, metrics: MetricsWriter | None, row: dict[str, float]) -> None:
        if metrics is not None:
            self.progress.report(metrics.write(self.step, row))

    def _evaluation_due(self) -> bool:
        every = self.config.eval_every
        return self.step > 0 and (self.step == self.steps or bool(every and self.step % every == 0))

    def _evaluate(self, metrics: MetricsWriter | None) -> None:
        """Evaluate the averaged weights if there are any; the checkpoint of this step becomes the best if it is."""
        model = self.ema.module if self.ema is not None else self.model
        model.eval()
        self.ranks.align(model.buffers())  # each rank's BatchNorm saw its own images; the checkpoint holds rank 0's
        with torch.no_grad():
            values = self.task.evaluate(self._autocast(self.parallel.whole(model)), self._beat)
        self._write(metrics, {f"val/{name}": value for name, value in values.items()})
        value = values[self.task.best_metric]
        if math.isfinite(value) and (self.best is None or value > self.best):
            self.best = value
            path = self.checkpoints.last()
            if self.ranks.is_main and path is not None:
                self.checkpoints.mark_best(path)

    def _beat(self) -> None:
        """A sign of life during an evaluation, whose checkpoint is made: one process alone can stop here."""
        self.progress.beat()
        if self.stop.requested and self.ranks.world == 1:
            raise Interrupted

    def _save(self) -> None:
        """Checkpoint this step, unless that is done. A state that is not finite never gets here."""
        if self.step in (0, self._saved[0]):
            return
        self._check(self.step)
        state = self.parallel.collect(self._state())
        if self.ranks.is_main:
            self.checkpoints.save(state, self.step)
        self._saved = (self.step, time.monotonic())

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
            "names": self._names,
            "window": self._window,
        }

    def restore(self) -> int | None:
        """Continue from the last sound checkpoint; returns its step, or None where there is none."""
        path = self.ranks.share(self.checkpoints.newest_valid() if self.ranks.is_main else None)
        if path is None:
            return None
        state = load(path, self.ranks.device)
        for key, now in (("steps_per_epoch", self.steps_per_epoch), ("seed", self.seed)):
            if state[key] != now:
                raise UserError(f"{path}: made with {key} = {state[key]}, now {now}; the data or the config changed")
        self.parallel.load(self.model, state["model"])
        if self.ema is not None:
            self.parallel.load(self.ema.module, state["ema"])
        self.parallel.load_optimizer(self.optimizer, state["optimizer"])
        self.step, self.best = state["step"], state["best"]
        self._names, self._window = state["names"], state["window"]
        self._saved = (self.step, time.monotonic())
        log.info("resuming from %s", path)
        return self.step

    def _autocast(self, model: Any) -> Forward:
        if self.config.precision == "fp32":
            return model

        def forward(*inputs: Any) -> Any:
            with torch.autocast(self.ranks.device.type, torch.bfloat16):
                return model(*inputs)

        return forward
