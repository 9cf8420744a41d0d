"""Base class of the tasks that train on a data set: its splits and data loaders."""

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import torch
from torch import nn

from attnzoo import models
from attnzoo.data.batches import EpochBatchSampler, SampleIndex, make_loader, val_batch_indices
from attnzoo.data.build import build_dataset, dataset_info
from attnzoo.data.config import DataConfig
from attnzoo.engine.distributed import DistContext
from attnzoo.models.config import ModelConfig
from attnzoo.models.dry_run import unused_parameters


class DatasetTask:
    """Builds the data set and the model of a config. Subclasses add loss, evaluation and cost.

    `seed` is that of initial weights and generated images, `order_seed`, by default the same, that of the order of the
    data and of augmentation.
    """

    model: nn.Module
    collate: Callable[[Any], Any]  # samples to a batch

    def __init__(
        self, model: ModelConfig, data: DataConfig, seed: int, ctx: DistContext, *, order_seed: int | None = None
    ):
        self.ctx = ctx
        self._data, self._seed = data, seed
        self._order_seed = seed if order_seed is None else order_seed
        # rank 0 generates a synthetic data set, the others read it from the cache
        if ctx.is_main:
            self._build_data()
        ctx.barrier()
        if not ctx.is_main:
            self._build_data()
        self.num_classes = models.resolve_num_classes(model, self.train.num_classes)
        torch.manual_seed(seed)
        self.model = models.build(model, self.num_classes)
        # Freeze parameters without a gradient (stages beyond the last stride, an unused level embedding): DDP and
        # FSDP would wait for it.
        batch_size = max(data.batch_size // ctx.world_size, 1)
        for name in unused_parameters(self.model, dataset_info(data).size, batch_size):
            self.model.get_parameter(name).requires_grad_(False)
        self.batches_per_epoch = len(self._epoch(0, 0))
        self.global_batch_size = data.batch_size

    def _build_data(self) -> None:
        self.train = build_dataset(self._data, "train", self._seed)
        self.val = build_dataset(self._data, "val", self._seed)

    def _epoch(self, epoch: int, start: int) -> EpochBatchSampler:
        rank, world_size = self.ctx.rank, self.ctx.world_size
        size = self._data.batch_size
        return EpochBatchSampler(len(self.train), size, self._order_seed, epoch, rank, world_size, start=start)

    def batches(self, start: int, batches_per_epoch: int) -> Iterator[Any]:
        """Endless training batches of this rank, from number `start` on."""
        return make_loader(self.train, self._sample_batches(start, batches_per_epoch), self._data.workers, self.collate)

    def _sample_batches(self, start: int, batches_per_epoch: int) -> Iterator[list[SampleIndex]]:
        first, position = divmod(start, batches_per_epoch)
        for epoch in count(first):
            yield from islice(self._epoch(epoch, position), batches_per_epoch - position)
            position = 0

    def val_batches(self) -> Iterator[Any]:
        """Validation batches of this rank; no image is duplicated or padded."""
        size = self._data.val_batch_size or self._data.batch_size
        batches = val_batch_indices(len(self.val), size, self.ctx.rank, self.ctx.world_size)
        return make_loader(self.val, batches, self._data.workers, self.collate)
