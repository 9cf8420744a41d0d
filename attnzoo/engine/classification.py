"""Image classification task."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from attnzoo.data.classification import ClassificationBatch, collate_classification, seeded
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
        correct, images, loss = torch.zeros(2, dtype=torch.float64), 0, 0.0
        for batch in self.val_batches():
            batch = batch.to(self.ctx.device)
            logits = forward(batch.images).float()
            known = logits[:, : self.val.num_classes]
            correct += torch.stack([count_topk_correct(known, batch.labels, k) for k in (1, TOP_K)]).cpu()
            loss += F.cross_entropy(logits, batch.labels, reduction="sum").item()
            images += len(batch.labels)
            heartbeat()
        ranks = self.ctx.all_gather_object((correct.tolist(), images, loss))
        total = sum(count for _, count, _ in ranks)
        top1, top5 = (sum(counts[k] for counts, _, _ in ranks) / total for k in range(2))
        return {"top1": top1, "top5": top5, "loss": sum(loss for *_, loss in ranks) / total}

    def cost(self, model: nn.Module) -> Cost:
        """Parameters, multiply-accumulates and time of `model` on the first validation image."""
        batch = collate_classification([self.val[0]]).to(self.ctx.device)
        return measure(model, batch.images)


def count_topk_correct(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """The number of samples whose label (B,) is among the k highest of logits (B, C)."""
    topk = logits.topk(min(k, logits.shape[1]), -1).indices
    return (topk == labels[:, None]).any(-1).sum()
