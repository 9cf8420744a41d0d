"""Image classification task."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import nn

from attnzoo.data.batches import seeded
from attnzoo.data.classification import ClassificationBatch, collate_classification
from attnzoo.data.config import ClassificationDataConfig
from attnzoo.engine.dataset_task import DatasetTask
from attnzoo.engine.distributed import DistContext
from attnzoo.engine.task import Forward, StepLoss
from attnzoo.errors import UserError
from attnzoo.models.cost import Cost, measure
from attnzoo.models.vit.config import ClassifierConfig

TOP_K = 5


class ClassificationTask(DatasetTask):
    """Classifier, data, loss and evaluation built from a config."""

    name = "classification"
    collate = staticmethod(collate_classification)

    def __init__(
        self,
        model: ClassifierConfig,
        data: ClassificationDataConfig,
        seed: int,
        ctx: DistContext,
        *,
        order_seed: int | None = None,
    ):
        super().__init__(model, data, seed, ctx, order_seed=order_seed)
        self._label_smoothing = model.label_smoothing
        self._mixup = self._build_mixup(data)

    def _build_mixup(self, data: ClassificationDataConfig) -> Mixup | None:
        if not data.mixup and not data.cutmix:
            return None
        if data.batch_size // self.ctx.world_size % 2:
            raise UserError(
                f"data.batch_size = {data.batch_size}: mixup and cutmix need an even batch size per process "
                f"(processes = {self.ctx.world_size})",
                key="data.batch_size",
            )
        return Mixup(
            data.mixup,
            data.cutmix,
            switch_prob=data.mix_switch,
            label_smoothing=self._label_smoothing,
            num_classes=self.num_classes,
        )

    def normalizer(self, batches: Sequence[ClassificationBatch]) -> float:
        """1.0: the loss is a mean over images, and all batches have the same size."""
        return 1.0

    def loss(self, forward: Forward, batch: ClassificationBatch, normalizer: float) -> StepLoss:
        """Cross-entropy with label smoothing, and with mixup or cutmix if enabled."""
        batch = batch.to(self.ctx.device)
        if self._mixup is None:
            total = F.cross_entropy(forward(batch.images).float(), batch.labels, label_smoothing=self._label_smoothing)
            return StepLoss(total, {})
        # timm's Mixup uses NumPy's generator: seeded from torch's, which the trainer seeds for every step
        with seeded(int(torch.randint(2**31, ()))):
            images, targets = self._mixup(batch.images, batch.labels)
        return StepLoss(F.cross_entropy(forward(images).float(), targets), {})

    def evaluate(self, forward: Forward, heartbeat: Callable[[], None]) -> dict[str, float]:
        """Top-1 and top-5 accuracy (0…1) and mean cross-entropy on the validation set.

        Classes of the model that the data set does not have are not predicted; the cross-entropy includes them.
        """
        results = classify(forward, self.val.num_classes, self.val_batches(), self.ctx.device, heartbeat)
        ranks = self.ctx.all_gather_object(results)
        return summarize([result for of_rank in ranks for result in of_rank])

    def cost(self, model: nn.Module) -> Cost:
        """Parameters, multiply-accumulates and time of `model` on the first validation image."""
        batch = collate_classification([self.val[0]]).to(self.ctx.device)
        return measure(model, batch.images)


class BatchResult(NamedTuple):
    """Of a batch of validation images: the five best classes of each, best first, the true one, the summed loss."""

    top: list[list[int]]
    labels: list[int]
    loss: float


def classify(
    forward: Forward,
    num_classes: int,
    batches: Iterable[ClassificationBatch],
    device: torch.device,
    heartbeat: Callable[[], None],
) -> list[BatchResult]:
    """The results of `batches` of a data set with `num_classes` classes, the only ones that are predicted."""
    results = []
    for batch in batches:
        inputs = batch.to(device)
        logits = forward(inputs.images).float()
        known = logits[:, :num_classes]
        top = known.topk(min(TOP_K, known.shape[1]), -1).indices
        loss = F.cross_entropy(logits, inputs.labels, reduction="sum").item()
        results.append(BatchResult(top.tolist(), batch.labels.tolist(), loss))
        heartbeat()
    return results


def summarize(results: Sequence[BatchResult]) -> dict[str, float]:
    """Top-1 and top-5 accuracy (0…1) and mean cross-entropy."""
    images = [image for result in results for image in zip(result.top, result.labels, strict=True)]
    return {
        "top1": sum(top[0] == label for top, label in images) / len(images),
        "top5": sum(label in top for top, label in images) / len(images),
        "loss": sum(result.loss for result in results) / len(images),
    }
