"""Classification data: samples, batches, and data sets from folders and through timm."""

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
from torchvision.datasets import DatasetFolder, ImageFolder
from torchvision.transforms.v2 import functional as F

from attnzoo.data.batches import SampleIndex
from attnzoo.data.cache import SampleCache
from attnzoo.data.checks import check_option
from attnzoo.data.images import DECODER_ERRORS, ImageReader
from attnzoo.data.pixels import PixelTransform, apply_to_pixels
from attnzoo.data.registries import DatasetSpec, FileDatasetSpec, format_difference, transform_errors
from attnzoo.errors import UserError, plural
from attnzoo.registry import Registry

ImageTransform = Callable[[Image.Image], Tensor] | PixelTransform
"""Maps an RGB image to a normalised tensor (3, h, w), or changes the pixels of a batch.

Randomness comes from the global generators of torch (CPU), NumPy and Python, which are seeded for every sample."""


class ClassificationDataset(Dataset[tuple[Tensor, int]]):
    """Samples (image (3, h, w), label), each depending only on (index, seed).

    `source` gives PIL images and labels by index. `cache_in_memory`: cache decoded images.
    """

    def __init__(
        self,
        source: Any,
        num_classes: int,
        transform: ImageTransform,
        cache_in_memory: bool = False,
    ):
        self.source, self.num_classes, self.transform = source, num_classes, transform
        self._reader = ImageReader()
        self._load = SampleCache(self.load_raw, enabled=cache_in_memory and not isinstance(transform, PixelTransform))
        self._pixels = SampleCache(self._load_pixels, enabled=cache_in_memory)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: int | SampleIndex) -> tuple[Tensor, int]:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int | SampleIndex]) -> list[tuple[Tensor, int]]:
        """The samples of a batch; DataLoader calls this."""
        samples = [item if isinstance(item, SampleIndex) else SampleIndex(item, seed=0) for item in items]
        if not isinstance(self.transform, PixelTransform):
            return [self._transformed(sample, self.transform) for sample in samples]
        images, labels = zip(*(self._pixels(sample.index) for sample in samples), strict=True)
        pixels = apply_to_pixels(self.transform, images, [sample.seed for sample in samples])
        return list(zip(pixels, labels, strict=True))

    def _transformed(self, sample: SampleIndex, transform: Callable[[Image.Image], Tensor]) -> tuple[Tensor, int]:
        image, label = self._load(sample.index)
        with transform_errors(lambda: self._name(sample.index)), seeded(sample.seed):
            return transform(image), label

    def _load_pixels(self, index: int) -> tuple[Tensor, int]:
        image, label = self.load_raw(index)
        return F.pil_to_tensor(image), label

    def load_raw(self, index: int) -> tuple[Image.Image, int]:
        """RGB image and label without augmentation. Raises UserError if the image is damaged or the label invalid."""
        try:
            image, label = self.source[index]
            image = self._reader.to_rgb(image, lambda: self._name(index))
        except DECODER_ERRORS as error:
            name = self._name(index)
            message = f"data.dataset: {name} is missing, damaged or unsupported ({error})"
            raise UserError(message, key="data.dataset") from error
        if not 0 <= label < self.num_classes:
            classes = plural(self.num_classes, "class", "classes")
            message = f"data.dataset: {self._name(index)}: label {label} out of range for {classes}"
            raise UserError(message, key="data.dataset")
        return image, int(label)

    def _name(self, index: int) -> str:
        """The image in messages: its index and, if known, its file."""
        if isinstance(self.source, DatasetFolder):
            return f"image {index} ({self.source.samples[index][0]})"
        if isinstance(self.source, timm.data.ImageDataset):
            return f"image {index} ({self.source.filename(index, absolute=True)})"
        return f"image {index}"


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
    """Stack samples. Raises UserError if their sizes differ."""
    images, labels = zip(*samples, strict=True)
    sizes = {tuple(image.shape[1:]) for image in images}
    if len(sizes) > 1:
        listed = " and ".join(f"{h}x{w}" for h, w in sorted(sizes)[:2])
        raise UserError(
            f"data.augment: the images of a batch differ in size ({listed}): choose one with a fixed output size",
            key="data.augment",
        )
    return ClassificationBatch(torch.stack(images), torch.tensor(labels))


CLASSIFICATION_DATASETS: Registry[Callable[..., DatasetSpec[ImageTransform, ClassificationDataset]]] = Registry(
    "data set"
)
"""Constructors take keyword-only options and return a `DatasetSpec` of a `ClassificationDataset`."""

CLASSIFICATION_AUGMENTATIONS: Registry[Callable[..., ImageTransform]] = Registry("augmentation")
"""Constructors take the split positionally and keyword-only options; "val" gives the evaluation transform."""


@CLASSIFICATION_DATASETS.register("folder")
@dataclass(frozen=True, kw_only=True)
class ImageFolderSpec(FileDatasetSpec):
    """Images in `root`/train/CLASS/ and `root`/val/CLASS/, as ImageNet is stored; classes in alphabetical order."""

    root: str
    train: str = "train"
    val: str = "val"

    @property
    def num_classes(self) -> int:
        return len(self._classes("train"))

    def check(self) -> None:
        difference = format_difference(set(self._classes("train")), set(self._classes("val")))
        if difference:
            message = (
                f"data.dataset: {self._path('train')} and {self._path('val')} have different classes ({difference})"
            )
            raise UserError(message, key="data.dataset")

    def build(self, split: str, transform: ImageTransform) -> ClassificationDataset:
        self.check()
        source = ImageFolder(str(self._path(split)), loader=Image.open, allow_empty=True)
        return ClassificationDataset(source, self.num_classes, transform)

    def _path(self, split: str) -> Path:
        return Path(self.root).expanduser() / (self.train if split == "train" else self.val)

    def _classes(self, split: str) -> list[str]:
        path = self._path(split)
        classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
        if not classes:
            raise UserError(f"data.dataset.root: no class folders in {path}", key="data.dataset.root")
        return classes


@CLASSIFICATION_DATASETS.register("timm")
@dataclass(frozen=True, kw_only=True)
class TimmSpec(FileDatasetSpec):
    """`timm.data.create_dataset(source, root, split, **options)`, such as `torch/cifar10` or `hfds/…`.

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
        check_option("data.dataset.num_classes", self.num_classes, self.num_classes >= 1, "at least 1")

    def build(self, split: str, transform: ImageTransform) -> ClassificationDataset:
        name = self.train if split == "train" else self.val
        try:
            dataset = timm.data.create_dataset(
                self.source, root=self.root, split=name, download=self.download, **(self.options or {})
            )
        except (AssertionError, RuntimeError, TypeError, ValueError, OSError, ImportError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"data.dataset: timm cannot open {self.source!r}, split {name!r}: {reason}", key="data.dataset"
            ) from error
        if isinstance(dataset, IterableDataset):
            raise UserError(
                f"data.dataset.source = {self.source!r}: iterable data sets are not supported (runs could not resume)",
                key="data.dataset.source",
            )
        self._keep_image_modes(dataset)
        return ClassificationDataset(dataset, self.num_classes, transform)

    def _keep_image_modes(self, dataset: Any) -> None:
        """Leave the conversion to RGB to ImageReader: Pillow's clips 16-bit images and ignores EXIF orientation."""
        if isinstance(dataset, timm.data.ImageDataset) and "input_img_mode" not in (self.options or {}):
            dataset.input_img_mode = None
        elif isinstance(dataset, DatasetFolder):
            dataset.loader = Image.open
