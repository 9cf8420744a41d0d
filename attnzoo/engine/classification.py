"""Image classification as a task for the training loop."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from attnzoo.data.classification import ClassificationBatch, collate_classification, seeded
from attnzoo.data.config import ClassificationDataConfig
from attnzoo.engine.dataset_task import DatasetTask
from attnzoo.engine.distributed import Ranks
from attnzoo.engine.task import Forward, StepLoss
from attnzoo.errors import UserError
from attnzoo.models.cost import Cost, measure
from attnzoo.models.vit.config import ClassifierConfig

TOP = 5


class ClassificationTask(DatasetTask):
    """The classifier, data, loss and evaluation that an experiment describes."""

    best_metric = "top1"
    collate = staticmethod(collate_classification)

    def __init__(self, model: ClassifierConfig, data: ClassificationDataConfig, seed: int, ranks: Ranks):
        super().__init__(model, data, seed, ranks)
        self._label_smoothing = model.label_smoothing
        self._mixup = self._build_mixup(data)

    def _build_mixup(self, data: ClassificationDataConfig) -> Mixup | None:
        if not data.mixup and not data.cutmix:
            return None
        if data.batch_size // self.ranks.world % 2:
            raise UserError(
                f"data.batch_size = {data.batch_size}: mixup and cutmix pair the images of each of {self.ranks.world} "
                "processes, whose number must be even"
            )
        return Mixup(
            data.mixup,
            data.cutmix,
            switch_prob=data.mix_switch,
            label_smoothing=self._label_smoothing,
            num_classes=self.num_classes,
        )

    def normalizer(self, batches: Sequence[ClassificationBatch]) -> float:
        """One: the loss is a mean over images, and all batches have as many."""
        return 1.0

    def loss(self, forward: Forward, batch: ClassificationBatch, normalizer: float) -> StepLoss:
        """Cross-entropy with label smoothing, of mixed images with mixed labels."""
        batch = batch.to(self.ranks.device)
        if self._mixup is None:
            total = F.cross_entropy(forward(batch.images).float(), batch.labels, label_smoothing=self._label_smoothing)
            return StepLoss(total, {})
        # timm draws from NumPy; the loop seeds torch anew for every step, so that a step repeats after a resume
        with seeded(int(torch.randint(2**31, ()))):
            images, targets = self._mixup(batch.images, batch.labels)
        return StepLoss(F.cross_entropy(forward(images).float(), targets), {})

    def evaluate(self, forward: Forward, beat: Callable[[], None]) -> dict[str, float]:
        """Shares of validation images whose class has the highest logit, or is among the five highest."""
        hits, images, loss = torch.zeros(2, dtype=torch.float64), 0, 0.0
        for batch in self.val_batches():
            here = batch.to(self.ranks.device)
            logits = forward(here.images).float()
            hits += torch.stack([top_hits(logits, here.labels, k) for k in (1, TOP)]).cpu()
            loss += F.cross_entropy(logits, here.labels, reduction="sum").item()
            images += len(here.labels)
            beat()
        parts = self.ranks.gather((hits.tolist(), images, loss))
        total = sum(count for _, count, _ in parts)
        top1, top5 = (sum(part[k] for part, _, _ in parts) / total for k in range(2))
        return {"top1": top1, "top5": top5, "loss": sum(part for *_, part in parts) / total}

    def cost(self, model: nn.Module) -> Cost:
        """Parameters, multiply-accumulates and time of `model` on the first validation image."""
        batch = collate_classification([self.val[0]]).to(self.ranks.device)
        return measure(model, batch.images)


def top_hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """How many labels (B,) are among the k classes with the highest logits (B, classes)."""
    best = logits.topk(min(k, logits.shape[1]), -1).indices
    return (best == labels[:, None]).any(-1).sum()
