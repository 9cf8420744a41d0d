"""Which samples form which batch, and how they are put together."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from attnzoo.data.registries import Target
from attnzoo.errors import UserError


@dataclass(frozen=True)
class SampleIndex:
    """One use of one image: its position in the data set and the seed of its augmentation."""

    index: int
    seed: int


@dataclass(frozen=True, eq=False)
class Batch:
    """Images padded at the bottom and right to a common size.

    `images` (B, 3, H, W), zero (the mean colour) at padding; `mask` (B, H, W) bool, True = padding, or None if no image
    is padded; `targets` one dict per image, as DetectionDataset makes them.
    """

    images: Tensor
    mask: Tensor | None
    targets: list[Target]

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on `device`, copied asynchronously from pinned memory."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; called by DataLoader."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Any) -> "Batch":
        mask = None if self.mask is None else change(self.mask)
        return Batch(change(self.images), mask, [{k: change(v) for k, v in t.items()} for t in self.targets])


def collate(samples: Sequence[tuple[Tensor, Target]]) -> Batch:
    """Stack samples of any sizes; `samples` must not be empty."""
    images, targets = zip(*samples, strict=True)
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    if all(image.shape[1:] == (height, width) for image in images):
        return Batch(torch.stack(images), None, list(targets))
    padded = images[0].new_zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for position, image in enumerate(images):
        _, h, w = image.shape
        padded[position, :, :h, :w] = image
        mask[position, :h, :w] = False
    return Batch(padded, mask, list(targets))


class EpochBatchSampler:
    """The batches of one epoch, as lists of SampleIndex: a shuffle without the last, partial batch.

    Order and augmentation seeds depend on (seed, epoch) alone. `batch_size` counts all `world` processes; process
    `rank` gets a contiguous part of each batch, so that the parts of all processes make up the batch of one. The first
    `start` batches are left out without being read.

    Raises UserError if `batch_size` does not divide by `world`, or if not one batch can be filled.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1, start: int = 0
    ):
        if batch_size < 1 or batch_size % world:
            raise UserError(f"data.batch_size = {batch_size}: expected a positive multiple of the {world} processes")
        if batch_size > length:
            raise UserError(f"data.batch_size = {batch_size}: the training set has only {length} images")
        self.length, self.batch_size, self.seed, self.epoch = length, batch_size, seed, epoch
        self.rank, self.world, self.start = rank, world, start

    def __len__(self) -> int:
        return max(self.length // self.batch_size - self.start, 0)

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        mixed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(mixed) >> 1)
        order = torch.randperm(self.length, generator=generator).tolist()
        seeds = torch.randint(2**63 - 1, (self.length,), generator=generator).tolist()
        share = self.batch_size // self.world
        for number in range(self.start, self.length // self.batch_size):
            first = number * self.batch_size + self.rank * share
            yield [SampleIndex(order[i], seeds[i]) for i in range(first, first + share)]


def val_batch_indices(length: int, size: int, rank: int = 0, world: int = 1) -> list[range]:
    """The batches of 0 … length-1 that process `rank` evaluates: every one of them falls to exactly one process.

    They are the same for any `world`, because the padding of an image depends on its neighbours in a batch.
    """
    return [range(start, min(start + size, length)) for start in range(0, length, size)][rank::world]


def make_loader(
    dataset: Dataset[Any],
    batches: Iterable[Sequence[int | SampleIndex]],
    workers: int = 0,
    collate: Callable[[Any], Any] = collate,
) -> Iterator[Any]:
    """Read `batches` (EpochBatchSampler, several of them chained, or lists of indices) in order.

    `collate` makes a batch of samples. Workers live as long as the iteration: to keep them over epochs, chain the
    epochs. What is loaded does not depend on their number, and the global random state is left alone. A UserError in a
    worker arrives as one here.
    """
    source: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else every iteration would draw from the global one
    )
    try:
        yield from source
    except UserError as error:
        # DataLoader wraps a worker's message in its traceback, whose last line is the message.
        raise UserError(str(error).rsplit("UserError: ", 1)[-1].strip()) from error
