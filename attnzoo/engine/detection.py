"""Object detection task."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

from attnzoo.data.batches import Batch, collate
from attnzoo.data.coco import DetectionDataset
from attnzoo.data.config import DataConfig
from attnzoo.data.evaluate import CocoEvaluator
from attnzoo.engine.dataset_task import DatasetTask
from attnzoo.engine.distributed import DistContext
from attnzoo.engine.task import Forward, StepLoss
from attnzoo.models.cost import Cost, measure
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.models.detr.losses import SetCriterion
from attnzoo.models.detr.postprocess import postprocess

log = logging.getLogger(__name__)


class DetectionTask(DatasetTask):
    """Detector, data, losses and evaluation built from a config."""

    name = "detection"
    collate = staticmethod(collate)

    def __init__(
        self,
        model: DetectorConfig,
        data: DataConfig,
        seed: int,
        ctx: DistContext,
        *,
        order_seed: int | None = None,
        per_class: bool = False,
        max_detections: int = 100,
    ):
        super().__init__(model, data, seed, ctx, order_seed=order_seed)
        self._classification, self._per_class = model.loss.classification, per_class
        self._max_detections = max_detections
        _warn_about_many_objects("training", self.train, {"model.queries": model.queries})
        limits = {"model.queries": model.queries, "max_detections": max_detections}
        _warn_about_many_objects("validation", self.val, limits)
        self._loss = SetCriterion(model.loss, self.num_classes, select=model.head.select)

    def normalizer(self, batches: Sequence[Batch]) -> float:
        """Mean number of objects per batch and rank, at least 1: k accumulated batches equal one k times as large.

        Exact except for the cross-entropy class loss, a weighted mean over the queries of each batch.
        """
        objects = sum(len(target["labels"]) for batch in batches for target in batch.targets) / len(batches)
        return max(self.ctx.all_reduce_mean(torch.tensor(objects, dtype=torch.float64)).item(), 1.0)

    def loss(self, forward: Forward, batch: Batch, normalizer: float) -> StepLoss:
        batch = batch.to(self.ctx.device)
        result = self._loss(forward(batch.images, batch.mask), batch.targets, normalizer)
        return StepLoss(result.total, result.parts)

    def evaluate(self, forward: Forward, heartbeat: Callable[[], None]) -> dict[str, float]:
        """AP and AR on the validation set, which is divided among the ranks."""
        evaluator = detect(
            forward,
            self.val,
            self.val_batches(),
            self.ctx.device,
            self._classification,
            self._max_detections,
            heartbeat,
        )
        results = [result for rank_results in self.ctx.all_gather_object(evaluator.results) for result in rank_results]
        summary = evaluator.summarize(results, self._per_class) if self.ctx.is_main else None
        return dict(self.ctx.broadcast_object(summary))

    def cost(self, model: nn.Module) -> Cost:
        """Parameters, multiply-accumulates and time of `model` on the first validation image."""
        batch = collate([self.val[0]]).to(self.ctx.device)
        return measure(model, batch.images, batch.mask)


def detect(
    forward: Forward,
    dataset: DetectionDataset,
    batches: Iterable[Batch],
    device: torch.device,
    classification: str,
    max_detections: int,
    heartbeat: Callable[[], None],
) -> CocoEvaluator:
    """The detections in `batches` of `dataset`, ready to be evaluated. `classification` is that of LossConfig."""
    evaluator = CocoEvaluator(dataset, max_detections)
    for batch in batches:
        inputs = batch.to(device)
        output = forward(inputs.images, inputs.mask)
        sizes = torch.stack([target["orig_size"] for target in batch.targets])
        evaluator.add(postprocess(output, sizes, classification, max_detections), batch.targets)
        heartbeat()
    return evaluator


def _warn_about_many_objects(split: str, dataset: DetectionDataset, limits: Mapping[str, int]) -> None:
    """Warn of the lowest of `limits`, by config key, if images have more objects, which cannot all be detected."""
    key, limit = min(limits.items(), key=lambda item: item[1])
    exceeding = [count for count in dataset.num_objects if count > limit]
    if exceeding:
        message = "%d of %d %s images have more objects than %s = %d (up to %d); the rest cannot be detected"
        log.warning(message, len(exceeding), len(dataset), split, key, limit, max(exceeding))
