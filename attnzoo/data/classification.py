"""Images with one label each: samples, batches, and what reads them from folders and through timm."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from torchvision.datasets import ImageFolder

from attnzoo.data.batches import SampleIndex
from attnzoo.data.registries import SPLITS, DatasetSpec, OnDisk
from attnzoo.errors import UserError, unknown
from attnzoo.registry import Registry

ImageTransform = Callable[[Image.Image], Tensor]
"""From an RGB image to a normalised tensor (3, h, w). Randomness comes from the global generators of torch (on the
CPU), NumPy and Python, which are seeded for every sample."""


CLASSIFICATION_DATASETS: Registry[Callable[..., DatasetSpec[ImageTransform, "ClassificationDataset"]]] = Registry(
    "data set"
)
"""Constructors take keyword-only options and return a `DatasetSpec` of a `ClassificationDataset`."""

CLASSIFICATION_AUGMENTATIONS: Registry[Callable[..., ImageTransform]] = Registry("augmentation")
"""Constructors take the split positionally and keyword-only options; for "val" they return what evaluation needs."""


class ClassificationDataset(Dataset[tuple[Tensor, int]]):
    """Samples (image (3, h, w), label), each a pure function of (index, seed): neither workers nor order change it.

    `source` gives PIL images and labels by index. `keep`: hold what was read once in memory.
    """

    def __init__(self, source: Any, num_classes: int, transform: ImageTransform, keep: bool = False):
        self.source, self.num_classes, self.transform = source, num_classes, transform
        self._kept: dict[int, tuple[Image.Image, int]] | None = {} if keep else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: int | SampleIndex) -> tuple[Tensor, int]:
        draw = item if isinstance(item, SampleIndex) else SampleIndex(item, seed=0)
        image, label = self._load(draw.index)
        if not 0 <= label < self.num_classes:
            raise UserError(f"data.dataset: image {draw.index} has the label {label}, of {self.num_classes} classes")
        with seeded(draw.seed):
            return self.transform(image), label

    def _load(self, index: int) -> tuple[Image.Image, int]:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        try:
            image, label = self.source[index]
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow's decoders raise
            raise UserError(f"data.dataset: image {index} is missing or damaged ({error})") from error
        sample = image.convert("RGB"), int(label)
        if self._kept is not None:
            self._kept[index] = sample
        return sample


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch (on the CPU), NumPy and Python, and put them back as they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@dataclass(frozen=True, eq=False)
class ClassificationBatch:
    """`images` (B, 3, H, W) and `labels` (B,) int64."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> "ClassificationBatch":
        """The batch on `device`, copied asynchronously from pinned memory."""
        return ClassificationBatch(self.images.to(device, non_blocking=True), self.labels.to(device, non_blocking=True))

    def pin_memory(self) -> "ClassificationBatch":
        """The batch in page-locked memory; called by DataLoader."""
        return ClassificationBatch(self.images.pin_memory(), self.labels.pin_memory())


def collate_classification(samples: Sequence[tuple[Tensor, int]]) -> ClassificationBatch:
    """Stack samples of one size. Raises UserError where they have several."""
    images, labels = zip(*samples, strict=True)
    sizes = {tuple(image.shape[1:]) for image in images}
    if len(sizes) > 1:
        listed = " and ".join(f"{h}x{w}" for h, w in sorted(sizes)[:2])
        raise UserError(
            f"data.augment: the images of a batch differ in size ({listed}): choose one that makes them equal"
        )
    return ClassificationBatch(torch.stack(images), torch.tensor(labels))


@CLASSIFICATION_DATASETS.register("folder")
@dataclass(frozen=True, kw_only=True)
class ImageFolderSpec(OnDisk):
    """Images in `root`/train/CLASS/ and `root`/val/CLASS/, as ImageNet is stored; classes count alphabetically."""

    root: str
    train: str = "train"
    val: str = "val"

    @property
    def num_classes(self) -> int:
        return len(self._classes("train"))

    def build(self, split: str, transform: ImageTransform) -> ClassificationDataset:
        classes = self._classes(split)
        if classes != self._classes("train"):
            raise UserError(f"data.dataset: {self._path(split)} has other classes than {self._path('train')}")
        return ClassificationDataset(ImageFolder(str(self._path(split)), allow_empty=True), len(classes), transform)

    def _path(self, split: str) -> Path:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        return Path(self.root).expanduser() / (self.train if split == "train" else self.val)

    def _classes(self, split: str) -> list[str]:
        path = self._path(split)
        classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
        if not classes:
            raise UserError(f"data.dataset.root: {path} has no folders of classes")
        return classes


@CLASSIFICATION_DATASETS.register("timm")
@dataclass(frozen=True, kw_only=True)
class TimmSpec(OnDisk):
    """What `timm.data.create_dataset(source, root, split, **options)` reads by index, as `torch/cifar10` and `hfds/…`.

    `options` are the reader's own, such as `{input_key: img}` for a Hugging Face data set.
    """

    source: str
    root: str | None = None
    num_classes: int
    train: str = "train"
    val: str = "validation"
    download: bool = False
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise UserError(f"data.dataset.num_classes = {self.num_classes}: expected at least 1")

    def build(self, split: str, transform: ImageTransform) -> ClassificationDataset:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        name = self.train if split == "train" else self.val
        try:
            found = timm.data.create_dataset(
                self.source, root=self.root, split=name, download=self.download, **(self.options or {})
            )
        except (AssertionError, RuntimeError, TypeError, ValueError, OSError, ImportError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"data.dataset: timm cannot open {self.source!r}, split {name!r}: {reason}") from error
        if isinstance(found, IterableDataset):
            raise UserError(
                f"data.dataset.source = {self.source!r}: it reads in its own order, so runs could not resume"
            )
        return ClassificationDataset(found, self.num_classes, transform)
