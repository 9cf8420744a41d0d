"""Classification data: samples, batches, and data sets from folders and through timm."""

import logging
import os
import reprlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm.data
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from torchvision.datasets import DatasetFolder
from torchvision.transforms.v2 import functional as F

from attnzoo.data.batches import SampleIndex, seeded
from attnzoo.data.cache import SampleCache
from attnzoo.data.checks import check_option
from attnzoo.data.folders import (
    FolderContent,
    check_timm_folder,
    class_names,
    folder_content,
    folder_reader,
    open_folder,
    skip_unreadable,
)
from attnzoo.data.hashes import combine_hashes
from attnzoo.data.images import ImageReader, header_error, open_image, reason_of
from attnzoo.data.pixels import PixelTransform, apply_to_pixels
from attnzoo.data.registries import SPLITS, DatasetSpec, FileDatasetSpec, format_difference, transform_errors
from attnzoo.errors import UserError, describe, plural
from attnzoo.paths import user_path, why_no_folder
from attnzoo.registry import Registry

ImageTransform = Callable[[Image.Image], Tensor] | PixelTransform
"""Maps an RGB image to a normalised tensor (3, h, w), or changes the pixels of a batch.

Randomness comes from the global generators of torch (CPU), NumPy and Python, which are seeded for every sample."""


log = logging.getLogger(__name__)


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
        self.decoded: Tensor | None = None  # all images of a `DatasetFolder`, (N, 3, h, w) uint8, as they are stored
        self._reader = ImageReader()
        self._load = SampleCache(self.load_raw, enabled=cache_in_memory and not isinstance(transform, PixelTransform))
        self._pixels = SampleCache(self._load_pixels, enabled=cache_in_memory)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: int | SampleIndex) -> tuple[Tensor, int]:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int | SampleIndex]) -> list[tuple[Tensor, int]]:
        """The samples of a batch; DataLoader calls this."""
        samples = SampleIndex.of(items)
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
        if self.decoded is not None:
            return self.decoded[index], int(self.source.targets[index])
        image, label = self.load_raw(index)
        return F.pil_to_tensor(image), label

    def load_raw(self, index: int) -> tuple[Image.Image, int]:
        """RGB image and label without augmentation. Raises UserError if the image is damaged or the label invalid."""
        try:
            image, label = self.source[index]
            image = self._reader.to_rgb(image, lambda: self._name(index))
        except Exception as error:  # Pillow raises anything
            raise self._unreadable(index, reason_of(error, self._file(index))) from error
        if not 0 <= label < self.num_classes:
            classes = plural(self.num_classes, "class", "classes")
            message = f"data.dataset: {self._name(index)}: label {label} out of range for {classes}"
            raise UserError(message, key="data.dataset")
        return image, int(label)

    def check_headers(self, skip_damaged: bool = False) -> None:
        """Raise UserError if a header states a pixel format that cannot be read, or, by default, is damaged.

        Only of images in class folders; pixels are not decoded.
        """
        reader = folder_reader(self.source)
        if reader is None:
            return
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            errors = list(pool.map(header_error, (path for path, _ in reader.samples)))
        for index, error in enumerate(errors):
            if error is not None and not (skip_damaged and error.damaged):
                raise self._unreadable(index, error.reason)

    def _unreadable(self, index: int, reason: Any) -> UserError:
        message = f"data.dataset: {self._name(index)} is missing, damaged or unsupported ({reason})"
        return UserError(message, key="data.dataset")

    def _name(self, index: int) -> str:
        """The image in messages: its index and, if known, its file."""
        file = self._file(index)
        return f"image {index} ({file})" if file else f"image {index}"

    def _file(self, index: int) -> str:
        """The file of an image; "" if it is not known."""
        if isinstance(self.source, DatasetFolder):
            return str(self.source.samples[index][0])
        if isinstance(self.source, timm.data.ImageDataset):
            return str(self.source.filename(index, absolute=True))
        return ""


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
    """Images in `root`/train/CLASS/ and `root`/val/CLASS/, as ImageNet is stored; classes in alphabetical order.

    Names that begin with a dot are ignored. `on_error: skip` decodes all images at the start and leaves out, with a
    warning, those that cannot be read.
    """

    root: str
    train: str = "train"
    val: str = "val"
    on_error: Literal["fail", "skip"] = "fail"

    @property
    def num_classes(self) -> int:
        return len(self._classes("train"))

    @property
    def class_names(self) -> list[str]:
        return self._classes("train")

    def fingerprint(self) -> str:
        """Hash of the paths and sizes of all images; their pixels are not read."""
        return combine_hashes(self._content(split).digest for split in SPLITS)

    def check(self) -> None:
        difference = format_difference(set(self._classes("train")), set(self._classes("val")))
        if difference:
            message = (
                f"data.dataset: {self._path('train')} and {self._path('val')} have different classes ({difference})"
            )
            raise UserError(message, key="data.dataset")
        for split in SPLITS:
            if not self._content(split).images:
                key = f"data.dataset.{split}"
                raise UserError(f"{key}: the class folders of {self._path(split)} have no images", key=key)
        if untrained := self._empty_classes("train"):
            names = reprlib.repr(untrained)
            key = "data.dataset.train"
            raise UserError(f"{key}: {self._path('train')} has no images of the classes {names}", key=key)

    def build(self, split: str, transform: ImageTransform) -> ClassificationDataset:
        self.check()
        source = open_folder(self._path(split))
        dataset = ClassificationDataset(source, self.num_classes, transform)
        if self.on_error == "skip":
            skip_unreadable(source, dataset.load_raw, self._path(split))
        elif split == "val":  # read long after the start, so checked now
            dataset.check_headers()
        empty = [source.classes[label] for label in sorted({*range(len(source.classes))} - {*source.targets})]
        if empty and split == "train":
            message = f"{self._path(split)} has no image that can be read of the classes {reprlib.repr(empty)}"
            raise UserError(f"data.dataset.train: {message}", key="data.dataset.train")
        if empty:
            log.warning("%s: no images of the classes %s", self._path(split), reprlib.repr(empty))
        return dataset

    def _empty_classes(self, split: str) -> list[str]:
        content = self._content(split)
        return content.names(set(content.classes.values()) - set(content.images))

    def _content(self, split: str) -> FolderContent:
        path = self._path(split)
        self._classes(split)  # raises UserError without any
        return folder_content(f"folder {path.absolute()}", lambda: open_folder(path))

    def _path(self, split: str) -> Path:
        return user_path(self.root) / user_path(self.train if split == "train" else self.val)

    def _classes(self, split: str) -> list[str]:
        path = self._path(split)
        if not os.path.isdir(path):
            raise UserError(f"data.dataset.root: {path}: {why_no_folder(path)}", key="data.dataset.root")
        classes = class_names(path)
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

    @property
    def class_names(self) -> list[str]:
        """Of class folders."""
        labels = self._content("val").classes if self._reads_folders else {}
        return sorted(labels, key=lambda name: labels[name])

    def fingerprint(self) -> str | None:
        """Hash of the paths, sizes and labels of images in class folders; None for other sources."""
        if not self._reads_folders:
            return None
        return combine_hashes(self._content(split).digest for split in SPLITS)

    def check(self) -> None:
        """Of class folders, which timm numbers for each split alone; other sources are opened when the run starts."""
        if not self._reads_folders:
            return
        train, val = (self._content(split) for split in SPLITS)
        difference = format_difference(set(train.classes), set(val.classes))
        if difference:
            message = f"data.dataset: {train.root} and {val.root} have different classes ({difference})"
            raise UserError(message, key=("data.dataset.train", "data.dataset.val"))
        if untrained := set(val.images) - set(train.images):  # with a class_map
            names = reprlib.repr(val.names(untrained))
            key = "data.dataset.train"
            raise UserError(f"{key}: {train.root} has no images of the classes {names}, which {val.root} has", key=key)
        if (highest := max(train.images)) >= self.num_classes:
            key = "data.dataset.num_classes"
            raise UserError(f"{key} = {self.num_classes}: {train.root} has labels up to {highest}", key=key)

    def build(self, split: str, transform: ImageTransform) -> ClassificationDataset:
        self.check()
        source = self._open(split)
        self._keep_image_modes(source)
        dataset = ClassificationDataset(source, self.num_classes, transform)
        if split == "val":  # read long after the start, so checked now
            dataset.check_headers(skip_damaged=isinstance(source, timm.data.ImageDataset))  # timm skips them
        return dataset

    @property
    def _reads_folders(self) -> bool:
        prefix, slash, name = self.source.lower().partition("/")
        is_archive = str(self.root).endswith(".tar")
        return not is_archive and (not slash or (prefix == "torch" and name in ("folder", "image_folder")))

    def _content(self, split: str) -> FolderContent:
        name = self.train if split == "train" else self.val
        key = repr((self.source, str(Path(self.root or "").absolute()), name, self.options))
        return folder_content(key, lambda: self._open(split))

    def _open(self, split: str) -> Any:
        name = self.train if split == "train" else self.val
        if self._reads_folders and self.root and os.path.isdir(self.root):
            check_timm_folder(str(Path(self.root).absolute()))
        try:
            dataset = timm.data.create_dataset(
                self.source, root=self.root, split=name, download=self.download, **(self.options or {})
            )
        except Exception as error:  # whatever a data set does with options that are not for it
            raise UserError(
                f"data.dataset: timm cannot open {self.source!r}, split {name!r}: {describe(error)}", key="data.dataset"
            ) from error
        if isinstance(dataset, IterableDataset):
            raise UserError(
                f"data.dataset.source = {self.source!r}: iterable data sets are not supported (runs could not resume)",
                key="data.dataset.source",
            )
        return dataset

    def _keep_image_modes(self, dataset: Any) -> None:
        """Leave the conversion to RGB to ImageReader: Pillow's clips 16-bit images and ignores EXIF orientation."""
        if isinstance(dataset, timm.data.ImageDataset) and "input_img_mode" not in (self.options or {}):
            dataset.input_img_mode = None
        elif isinstance(dataset, DatasetFolder):
            dataset.loader = open_image
