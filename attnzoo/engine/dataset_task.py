"""What the tasks have in common that train on a data set: its splits, and the batches of every step."""

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import torch
from torch import nn

from attnzoo import models
from attnzoo.data.batches import EpochBatchSampler, SampleIndex, make_loader, val_batch_indices
from attnzoo.data.build import build_dataset, dataset_info
from attnzoo.data.config import DataConfig
from attnzoo.engine.distributed import Ranks
from attnzoo.models.config import ModelConfig
from attnzoo.models.dry_run import unused_parameters


class DatasetTask:
    """The data and the model that an experiment describes. A subclass adds loss, evaluation and cost."""

    model: nn.Module
    collate: Callable[[Any], Any]  # samples to a batch

    def __init__(self, model: ModelConfig, data: DataConfig, seed: int, ranks: Ranks):
        self.ranks = ranks
        self._data, self._seed = data, seed
        # one process generates a built-in data set, the others find it in the cache
        if ranks.is_main:
            self._build_data()
        ranks.barrier()
        if not ranks.is_main:
            self._build_data()
        self.num_classes = models.class_count(model, self.train.num_classes)
        torch.manual_seed(seed)
        self.model = models.build(model, self.num_classes)
        # What no loss depends on (stages beyond the last stride, a level embedding that nothing reads) is not trained.
        for name in unused_parameters(model, self.num_classes, dataset_info(data).size):
            self.model.get_parameter(name).requires_grad_(False)
        self.batches_per_epoch = len(self._epoch(0, 0))
        self.images_per_batch = data.batch_size

    def _build_data(self) -> None:
        self.train = build_dataset(self._data, "train")
        self.val = build_dataset(self._data, "val")

    def _epoch(self, epoch: int, start: int) -> EpochBatchSampler:
        rank, world = self.ranks.rank, self.ranks.world
        return EpochBatchSampler(len(self.train), self._data.batch_size, self._seed, epoch, rank, world, start=start)

    def batches(self, start: int, per_epoch: int) -> Iterator[Any]:
        """The rank's batches of the run from number `start` on."""
        return make_loader(self.train, self._draws(start, per_epoch), self._data.workers, self.collate)

    def _draws(self, start: int, per_epoch: int) -> Iterator[list[SampleIndex]]:
        first, position = divmod(start, per_epoch)
        for epoch in count(first):
            yield from islice(self._epoch(epoch, position), per_epoch - position)
            position = 0

    def val_batches(self) -> Iterator[Any]:
        """The rank's part of the validation set: every image falls to one rank."""
        size = self._data.val_batch_size or self._data.batch_size
        parts = val_batch_indices(len(self.val), size, self.ranks.rank, self.ranks.world)
        return make_loader(self.val, parts, self._data.workers, self.collate)
