"""Object detection as a task for the training loop."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from attnzoo.data.batches import Batch, collate
from attnzoo.data.config import DataConfig
from attnzoo.data.evaluate import CocoEvaluator
from attnzoo.engine.dataset_task import DatasetTask
from attnzoo.engine.distributed import Ranks
from attnzoo.engine.task import Forward, StepLoss
from attnzoo.models.cost import Cost, measure
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.models.detr.losses import DetectionLoss
from attnzoo.models.detr.postprocess import postprocess


class DetectionTask(DatasetTask):
    """The detector, data, losses and evaluation that an experiment describes."""

    best_metric = "AP"
    collate = staticmethod(collate)

    def __init__(self, model: DetectorConfig, data: DataConfig, seed: int, ranks: Ranks, *, per_class: bool = False):
        super().__init__(model, data, seed, ranks)
        self._classification, self._per_class = model.loss.classification, per_class
        self._loss = DetectionLoss(model.loss, self.num_classes, select=model.head.select)

    def normalizer(self, batches: Sequence[Batch]) -> float:
        """Objects per batch and rank, at least 1; by it, k accumulated batches weigh as one of k-fold size.

        That is exact for all losses but the class loss with cross-entropy, a weighted mean over each batch's queries.
        """
        objects = sum(len(target["labels"]) for batch in batches for target in batch.targets) / len(batches)
        return max(self.ranks.mean(torch.tensor(objects, dtype=torch.float64)).item(), 1.0)

    def loss(self, forward: Forward, batch: Batch, normalizer: float) -> StepLoss:
        batch = batch.to(self.ranks.device)
        result = self._loss(forward(batch.images, batch.mask), batch.targets, normalizer)
        return StepLoss(result.total, result.parts)

    def evaluate(self, forward: Forward, beat: Callable[[], None]) -> dict[str, float]:
        """AP and AR over the whole validation set, each image evaluated by one rank."""
        evaluator = CocoEvaluator(self.val)
        for batch in self.val_batches():
            here = batch.to(self.ranks.device)
            output = forward(here.images, here.mask)
            sizes = torch.stack([target["orig_size"] for target in batch.targets])
            evaluator.add(postprocess(output, sizes, self._classification), batch.targets)
            beat()
        results = [result for rank_results in self.ranks.gather(evaluator.results) for result in rank_results]
        summary = evaluator.summarize(results, self._per_class) if self.ranks.is_main else None
        return dict(self.ranks.share(summary))

    def cost(self, model: nn.Module) -> Cost:
        """Parameters, multiply-accumulates and time of `model` on the first validation image."""
        batch = collate([self.val[0]]).to(self.ranks.device)
        return measure(model, batch.images, batch.mask)
