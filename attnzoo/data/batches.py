"""Batch samplers, collate function and loader."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from attnzoo.data.registries import Target
from attnzoo.errors import UserError, plural


@dataclass(frozen=True)
class SampleIndex:
    """Index of a sample with the seed of its augmentation."""

    index: int
    seed: int

    @classmethod
    def of(cls, items: Sequence["int | SampleIndex"]) -> list["SampleIndex"]:
        """Items of a data set's `__getitems__`; a plain index has the seed 0."""
        return [item if isinstance(item, SampleIndex) else cls(item, seed=0) for item in items]


@dataclass(frozen=True, eq=False)
class Batch:
    """Images padded at the bottom and right to a common size.

    `images` (B, 3, H, W), normalised, zero at padding; `mask` (B, H, W) bool, True = padding, or None if no image is
    padded; `targets` one dict per image, as returned by DetectionDataset.
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

    def _map(self, fn: Callable[[Tensor], Tensor]) -> "Batch":
        mask = None if self.mask is None else fn(self.mask)
        return Batch(fn(self.images), mask, [{k: fn(v) for k, v in target.items()} for target in self.targets])


def collate(samples: Sequence[tuple[Tensor, Target]]) -> Batch:
    """Stack samples of any sizes; `samples` must not be empty."""
    images, targets = zip(*samples, strict=True)
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    if all(image.shape[1:] == (height, width) for image in images):
        return Batch(torch.stack(images), None, list(targets))
    padded = images[0].new_zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for i, image in enumerate(images):
        _, h, w = image.shape
        padded[i, :, :h, :w] = image
        mask[i, :h, :w] = False
    return Batch(padded, mask, list(targets))


class EpochBatchSampler:
    """The batches of one epoch as lists of SampleIndex: shuffled, incomplete last batch dropped.

    Order and augmentation seeds depend only on (seed, epoch). `batch_size` is global; each rank gets a contiguous slice
    of every batch. The first `start` batches are skipped, for resuming.

    Raises UserError if `batch_size` is not a multiple of `world_size` or exceeds `num_samples`.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ):
        key = "data.batch_size"
        if batch_size < 1 or batch_size % world_size:
            raise UserError(
                f"{key} = {batch_size}: expected a positive multiple of the {world_size} processes", key=key
            )
        if batch_size > num_samples:
            raise UserError(
                f"{key} = {batch_size}: larger than the training set ({plural(num_samples, 'image')})", key=key
            )
        self.num_samples, self.batch_size, self.seed, self.epoch = num_samples, batch_size, seed, epoch
        self.rank, self.world_size, self.start = rank, world_size, start

    def __len__(self) -> int:
        return max(self.num_samples // self.batch_size - self.start, 0)

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        epoch_seed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(epoch_seed) >> 1)
        order = torch.randperm(self.num_samples, generator=generator).tolist()
        seeds = torch.randint(2**63 - 1, (self.num_samples,), generator=generator).tolist()
        per_rank = self.batch_size // self.world_size
        for batch in range(self.start, self.num_samples // self.batch_size):
            first = batch * self.batch_size + self.rank * per_rank
            yield [SampleIndex(order[i], seeds[i]) for i in range(first, first + per_rank)]


def val_batch_indices(num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[range]:
    """The validation batches of `rank`, as indices; each batch goes to exactly one rank.

    The batches are the same for any `world_size`, because an image's padding depends on the others in its batch.
    """
    starts = range(0, num_samples, batch_size)
    return [range(start, min(start + batch_size, num_samples)) for start in starts][rank::world_size]


def make_loader(
    dataset: Dataset[Any],
    batches: Iterable[Sequence[int | SampleIndex]],
    num_workers: int = 0,
    collate: Callable[[Any], Any] = collate,
) -> Iterator[Any]:
    """Load `batches` in order; to keep workers over epochs, chain the epochs' batches.

    Results do not depend on `num_workers`, and the global random state is not used. UserErrors from workers are
    re-raised.
    """
    loader: DataLoader[Any] = DataLoader(
        _ErrorsAsSamples(dataset),
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=partial(_collate_unless_error, collate),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # without one, every iteration draws from the global generator
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


class _ErrorsAsSamples(Dataset[Any]):
    """Returns a UserError instead of raising it, since DataLoader passes on only the text of a worker's exception."""

    def __init__(self, dataset: Dataset[Any]):
        self.dataset = dataset

    def __getitem__(self, index: int | SampleIndex) -> Any:
        try:
            return self.dataset[index]
        except UserError as error:
            return error


def _collate_unless_error(collate: Callable[[Any], Any], samples: Sequence[Any]) -> Any:
    """The batch, or the first error among its samples or in collating them."""
    try:
        return next((sample for sample in samples if isinstance(sample, UserError)), None) or collate(samples)
    except UserError as error:
        return error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch (CPU), NumPy and Python, and restore their state at the end."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
