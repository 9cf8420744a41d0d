"""A small task for tests of the trainer: regression with dropout and BatchNorm, on data made in memory."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn

from attnzoo.config import load as configs
from attnzoo.engine.checkpoint import CheckpointManager, load_checkpoint
from attnzoo.engine.config import OptimizerConfig, ScheduleConfig, TrainConfig
from attnzoo.engine.distributed import DistContext
from attnzoo.engine.interrupt import GracefulStop
from attnzoo.engine.metrics import MetricsLogger
from attnzoo.engine.progress import ProgressReporter
from attnzoo.engine.task import StepLoss
from attnzoo.engine.trainer import Trainer
from attnzoo.errors import ExitCode
from attnzoo.models.cost import Cost
from attnzoo.rundir.folder import RunFolder
from attnzoo.worker.train import train_run

ALONE = DistContext(0, 1, torch.device("cpu"))
BATCHES = 10


class Regression:
    """Ten batches per epoch; the loss is a mean over the batch. Batch number `poison` of the run holds a NaN."""

    name = "detection"
    batches_per_epoch = BATCHES
    global_batch_size = 4

    def __init__(self, batch_size: int = 4, dropout: float = 0.5, norm: bool = True, poison: int | None = None):
        torch.manual_seed(0)
        middle = [nn.BatchNorm1d(8)] if norm else []
        self.model = nn.Sequential(nn.Linear(5, 8), *middle, nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 1))
        data = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(160, 5, generator=data)
        self.targets = self.inputs[:, :1] * 2 + 0.1 * torch.randn(160, 1, generator=data)
        self.batch_size, self.poison = batch_size, poison
        self.evaluations = 0

    def batches(self, start: int, batches_per_epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number in count(start):
            epoch, position = divmod(number, batches_per_epoch)
            order = torch.randperm(160, generator=torch.Generator().manual_seed(epoch))
            chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
            inputs = self.inputs[chosen]
            yield (inputs * torch.nan if number == self.poison else inputs), self.targets[chosen]

    def normalizer(self, batches):
        return 1.0

    def loss(self, forward, batch, normalizer) -> StepLoss:
        error = (forward(batch[0]).float() - batch[1]).abs().mean() / normalizer
        return StepLoss(2 * error, {"l1": error.detach()})

    def evaluate(self, forward, heartbeat) -> dict[str, float]:
        self.evaluations += 1
        heartbeat()
        error = (forward(self.inputs).float() - self.targets).abs().mean().item()
        return {"AP": 1 / (1 + error), "AP_S": float("nan")}

    def cost(self, model) -> Cost:
        return Cost(params=10, trainable=10, gflops=1.0, ms=1.0)


def train_config(**changes) -> TrainConfig:
    """Twenty-five steps, so that the run ends in its third epoch."""
    optimizer = OptimizerConfig(lr=0.01, lr_multipliers={"4.": 0.1})
    schedule = ScheduleConfig("cosine", warmup=0.2)
    return TrainConfig(**({"steps": 25, "log_every": 4, "optimizer": optimizer, "schedule": schedule} | changes))


class Run:
    """One start of a training process on `folder`, resuming what is there."""

    def __init__(self, folder: Path, task=None, ctx: DistContext = ALONE, **changes):
        folder.mkdir(parents=True, exist_ok=True)
        self.dir = RunFolder(folder)
        self.stop = GracefulStop()
        self.task = task if task is not None else Regression()
        self.checkpoints = CheckpointManager(self.dir.checkpoints)
        config = train_config(**changes)
        self.trainer = Trainer(
            self.task, config, ctx, self.checkpoints, ProgressReporter(self.dir, config.steps), self.stop, seed=7
        )

    def train(self) -> list[dict]:
        """Run to the end or to an exception; returns the rows of metrics."""
        metrics = MetricsLogger(self.dir, self.trainer.resume())
        try:
            self.trainer.run(metrics)
        finally:
            metrics.close()
        return [without_speed(row) for row in self.dir.read_metrics()]


TINY = """
name: tiny
seed: 3
device: cpu
data:
  dataset: {name: digit_scenes, image_size: 32, sizes: [8, 14], train_images: 24, val_images: 10}
  batch_size: 4
model:
  dim: 32
  heads: 2
  ffn: 32
  queries: 5
  dropout: 0.1
  backbone: {name: test_resnet, strides: [8, 16], norm: trained, freeze: []}
  neck: {c6: false}
  encoder: {layers: 1}
  decoder: {layers: 2}
  head: {refine: true}
train:
  steps: 20
  log_every: 3
  eval_every: 8
  checkpoint_every: 5
  ema: 0.9
  pictures: false
  optimizer: {lr: 1e-3}
"""

TINY_SCENES = """
base: base/detr_scenes.yaml
name: tiny
data:
  dataset: {name: digit_scenes, image_size: 32, sizes: [6, 14], train_images: 24, val_images: 6}
  batch_size: 4
model: {dim: 16, heads: 2, ffn: 16, queries: 5}
train: {steps: 3, log_every: 1, eval_every: null}
"""


def tiny_run(folder: Path, experiment: str = TINY, **changes: str) -> RunFolder:
    """A run folder with a config that trains in about a second; `changes` are overrides, `.` spelt `__`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.yaml").write_text(experiment)
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    run = RunFolder(folder)
    configs.save(configs.load(folder / "experiment.yaml", overrides), run.config)
    return run


def results(run: RunFolder) -> list[dict]:
    """The rows of metrics without times and peak memory."""
    return [without_speed(row) for row in run.read_metrics()]


def check_resume(run: RunFolder, uninterrupted: RunFolder, step: int) -> None:
    """A new run from the checkpoint of a finished one after `step` ends as that did."""
    (checkpoint,) = uninterrupted.checkpoints.glob(f"step-{step:08d}*")
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    (run.checkpoints / checkpoint.name).write_bytes(checkpoint.read_bytes())
    run.metrics.write_bytes(uninterrupted.metrics.read_bytes())
    assert train_run(run.path) == ExitCode.OK
    assert results(run) == results(uninterrupted)
    ours, theirs = (load_checkpoint(CheckpointManager(r.checkpoints).latest())["model"] for r in (run, uninterrupted))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def without_speed(row: dict) -> dict:
    """A row without what differs between any two runs."""
    return {key: value for key, value in row.items() if key != "cost/ms" and not key.startswith("speed/")}


@pytest.fixture(scope="session")
def uninterrupted(cache, tmp_path_factory) -> RunFolder:
    """The tiny run, trained without interruption."""
    run = tiny_run(tmp_path_factory.mktemp("whole") / "run")
    assert train_run(run.path) == ExitCode.OK
    return run
