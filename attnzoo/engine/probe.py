"""Probes: training on maps that are generated as they are used, and accuracy against the best constant answer."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo import models
from attnzoo.data.build import build_dataset, dataset_info
from attnzoo.data.config import ProbeDataConfig
from attnzoo.data.probes import VAL_SEED, ProbeBatch
from attnzoo.engine.distributed import DistContext
from attnzoo.engine.task import Forward, StepLoss
from attnzoo.errors import UserError
from attnzoo.models.cost import Cost, measure
from attnzoo.models.dry_run import unused_parameters
from attnzoo.models.probe.config import ProbeConfig

BATCHES_PER_EPOCH = 100  # training maps do not repeat; an epoch is this many batches


class ProbeTask:
    """Probe, model, loss and evaluation built from a config.

    `seed` is that of initial weights, `order_seed`, by default the same, that of the training maps. Validation maps are
    the same for all seeds.
    """

    name = "probe"
    batches_per_epoch = BATCHES_PER_EPOCH

    def __init__(
        self,
        model: ProbeConfig,
        data: ProbeDataConfig,
        seed: int,
        ctx: DistContext,
        *,
        order_seed: int | None = None,
    ):
        if data.batch_size % ctx.world_size:
            message = f"data.batch_size = {data.batch_size}: expected a multiple of the {ctx.world_size} processes"
            raise UserError(message, key="data.batch_size")
        self.ctx, self._data = ctx, data
        self._order_seed = seed if order_seed is None else order_seed
        self.train = build_dataset(data, "train", seed)
        self.spec = self.train.spec
        self.val: ProbeBatch = build_dataset(data, "val", seed).batch(VAL_SEED, 0, self.spec.val_maps)
        self.num_classes = models.resolve_num_classes(model, self.spec.num_classes)
        torch.manual_seed(seed)
        self.model: nn.Module = models.build(model, self.num_classes)
        for name in unused_parameters(self.model, dataset_info(data).size, data.batch_size // ctx.world_size):
            self.model.get_parameter(name).requires_grad_(False)
        self.global_batch_size = data.batch_size

    def batches(self, start: int, batches_per_epoch: int) -> Iterator[ProbeBatch]:
        """Endless training batches of this rank, from number `start` on."""
        share = self.global_batch_size // self.ctx.world_size
        mine = slice(self.ctx.rank * share, (self.ctx.rank + 1) * share)
        for number in count(start):
            yield self.train.batch(self._order_seed, number, self.global_batch_size)[mine]

    def normalizer(self, batches: Sequence[ProbeBatch]) -> float:
        """1.0: the loss is a mean over answers, and all batches have the same size."""
        return 1.0

    def loss(self, forward: Forward, batch: ProbeBatch, normalizer: float) -> StepLoss:
        """Mean cross-entropy of all answers."""
        batch = batch.to(self.ctx.device)
        scores = self.split(forward(*batch.inputs).float())
        return StepLoss(F.cross_entropy(scores.flatten(0, 2), batch.labels.flatten()), {})

    def split(self, scores: Tensor) -> Tensor:
        """Scores (B, Q, A, classes) of each answer; those that the model has beyond the probe's are left out."""
        return scores[..., : self.spec.num_classes].unflatten(-1, (self.spec.answers, self.spec.classes))

    def evaluate(self, forward: Forward, heartbeat: Callable[[], None]) -> dict[str, float]:
        """On the validation maps: accuracy and mean cross-entropy over all answers, and chance.

        `chance` is the accuracy of the best constant answers.
        """
        size = self._data.val_batch_size or self._data.batch_size
        correct, loss = 0, 0.0
        for start in range(self.ctx.rank * size, len(self.val), size * self.ctx.world_size):
            batch = self.val[start : start + size].to(self.ctx.device)
            scores = self.split(forward(*batch.inputs).float())
            correct += int((scores.argmax(-1) == batch.labels).sum())
            loss += F.cross_entropy(scores.flatten(0, 2), batch.labels.flatten(), reduction="sum").item()
            heartbeat()
        ranks = self.ctx.all_gather_object((correct, loss))
        total = self.val.labels.numel()
        return {
            "accuracy": sum(count for count, _ in ranks) / total,
            "chance": chance(self.val.labels, self.spec.classes),
            "loss": sum(loss for _, loss in ranks) / total,
        }

    def cost(self, model: nn.Module) -> Cost:
        """Parameters, multiply-accumulates and time of `model` on the first validation map."""
        return measure(model, *self.val[:1].to(self.ctx.device).inputs)


def chance(labels: Tensor, classes: int) -> float:
    """The accuracy on labels (…, A) of the best constant answers, one class for each of A."""
    counts = F.one_hot(labels.flatten(0, -2), classes).sum(0)  # (A, classes)
    return counts.amax(-1).sum().item() / labels.numel()
