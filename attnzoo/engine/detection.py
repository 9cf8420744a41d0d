"""Object detection as a task for the training loop."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, islice

import torch

from attnzoo import models
from attnzoo.config.schema import ExperimentConfig
from attnzoo.data import Batch, CocoEvaluator, Draw, EpochBatches, build_dataset, collate, loader, outline, val_indices
from attnzoo.engine.distributed import Ranks
from attnzoo.engine.task import Forward, StepLoss
from attnzoo.errors import UserError
from attnzoo.inspect.cost import Cost, measure
from attnzoo.models.detr.losses import DetectionLoss, seen
from attnzoo.models.detr.postprocess import postprocess
from attnzoo.models.trial import untrained


class DetectionTask:
    """The detector, data, losses and evaluation that an experiment describes."""

    best_metric = "AP"

    def __init__(self, config: ExperimentConfig, ranks: Ranks):
        self.config, self.ranks = config, ranks
        # one process generates a built-in data set, the others find it in the cache
        if ranks.is_main:
            self._build_data()
        ranks.barrier()
        if not ranks.is_main:
            self._build_data()
        num_classes = config.model.num_classes or self.train.num_classes
        if num_classes < self.train.num_classes:
            raise UserError(f"model.num_classes = {num_classes}: the data set has {self.train.num_classes} classes")
        torch.manual_seed(config.seed)
        self.model = models.build(config.model, num_classes)
        self._loss = DetectionLoss(config.model.loss, num_classes, select=config.model.head.select)
        self.batches_per_epoch = len(self._epoch(0, 0))
        with torch.device("meta"):
            twin = models.build(config.model, num_classes)
        # What no loss depends on (stages beyond the last stride, a level embedding that nothing reads) is not trained.
        for name in untrained(twin, outline(config.data).size, partial(seen, config.model.loss)):
            self.model.get_parameter(name).requires_grad_(False)

    def _build_data(self) -> None:
        self.train = build_dataset(self.config.data, "train")
        self.val = build_dataset(self.config.data, "val")

    def _epoch(self, epoch: int, start: int) -> EpochBatches:
        return EpochBatches(
            len(self.train),
            self.config.data.batch_size,
            self.config.seed,
            epoch,
            self.ranks.rank,
            self.ranks.world,
            start=start,
        )

    def batches(self, start: int, per_epoch: int) -> Iterator[Batch]:
        return loader(self.train, self._draws(start, per_epoch), self.config.data.workers)

    def _draws(self, start: int, per_epoch: int) -> Iterator[list[Draw]]:
        first, position = divmod(start, per_epoch)
        for epoch in count(first):
            yield from islice(self._epoch(epoch, position), per_epoch - position)
            position = 0

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
        indices = val_indices(len(self.val), self.ranks.rank, self.ranks.world)
        size = max(self.config.data.batch_size // self.ranks.world, 1)
        parts = [indices[i : i + size] for i in range(0, len(indices), size)]
        for batch in loader(self.val, parts, self.config.data.workers):
            here = batch.to(self.ranks.device)
            output = forward(here.images, here.mask)
            sizes = torch.stack([target["orig_size"] for target in batch.targets])
            evaluator.add(postprocess(output, sizes, self.config.model.loss.classification), batch.targets)
            beat()
        rows = [row for rank_rows in self.ranks.gather(evaluator.rows) for row in rank_rows]
        return dict(self.ranks.share(evaluator.summarize(rows) if self.ranks.is_main else None))

    def cost(self) -> Cost:
        """Parameters, multiply-accumulates and time of the model on the first validation image."""
        batch = collate([self.val[0]]).to(self.ranks.device)
        return measure(self.model, batch.images, batch.mask)
