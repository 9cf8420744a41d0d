"""Data sets from the blocks of a config, and what is known of them before an image is read."""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torchvision import tv_tensors

from attnzoo.data import augment, augment_images, coco, digits, scenes  # noqa: F401 - importing registers them
from attnzoo.data.classification import CLASSIFICATION_AUGMENTATIONS, CLASSIFICATION_DATASETS
from attnzoo.data.config import ClassificationDataConfig, DataConfig
from attnzoo.data.registries import DETECTION_AUGMENTATIONS, DETECTION_DATASETS
from attnzoo.registry import Registry

LIKELY_SHAPE = (480, 640)  # the most common of COCO's photographs


def build_dataset(config: DataConfig, split: str) -> Any:
    """The "train" or "val" split with the transform that belongs to it: a DetectionDataset or LabelledDataset.

    Raises UserError for unknown names and options, and for missing or damaged files.
    """
    return _source(config).open(split, _transform(config, split))


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before any image is read or made.

    `num_classes` class indices; `size` (h, w) in pixels as the model is given images in evaluation, or a likely one;
    `train_length` training images, or None.
    """

    num_classes: int
    size: tuple[int, int]
    train_length: int | None


def dataset_info(config: DataConfig) -> DatasetInfo:
    """The outline of the data set. Raises UserError as `build_dataset` does."""
    source = _source(config)
    _transform(config, "train")
    h, w = source.shape or LIKELY_SHAPE
    transform = _transform(config, "val")
    if isinstance(config, ClassificationDataConfig):
        image = transform(Image.new("RGB", (w, h)))
    else:
        boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(h, w))
        target = {"boxes": boxes, "labels": torch.zeros(0, dtype=torch.int64)}
        image, _ = transform(tv_tensors.Image(torch.zeros(3, h, w, dtype=torch.uint8)), target)
    return DatasetInfo(source.num_classes, (image.shape[-2], image.shape[-1]), source.train_length)


def registries(config: DataConfig) -> tuple[Registry[Any], Registry[Any]]:
    """Where the blocks `dataset` and `augment` of a task's data are looked up."""
    if isinstance(config, ClassificationDataConfig):
        return CLASSIFICATION_DATASETS, CLASSIFICATION_AUGMENTATIONS
    return DETECTION_DATASETS, DETECTION_AUGMENTATIONS


def _transform(config: DataConfig, split: str) -> Any:
    return registries(config)[1].build_block(config.augment, split, where="data.augment")


def _source(config: DataConfig) -> Any:
    return registries(config)[0].build_block(config.dataset, where="data.dataset")
