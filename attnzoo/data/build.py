"""Data sets from the blocks of a config, and what is known of them before an image is read."""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torchvision import tv_tensors

from attnzoo.data import augment_classification, augment_detection, coco, digits, scenes  # noqa: F401 - importing registers them
from attnzoo.data.classification import CLASSIFICATION_AUGMENTATIONS, CLASSIFICATION_DATASETS
from attnzoo.data.config import ClassificationDataConfig, DataConfig
from attnzoo.data.registries import DETECTION_AUGMENTATIONS, DETECTION_DATASETS
from attnzoo.registry import Registry

DEFAULT_IMAGE_SHAPE = (480, 640)  # the most common of COCO's photographs


def build_dataset(config: DataConfig, split: str) -> Any:
    """The "train" or "val" split with the transform that belongs to it: a DetectionDataset or ClassificationDataset.

    Raises UserError for unknown names and options, and for missing or damaged files.
    """
    return _spec(config).build(split, _transform(config, split))


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
    """The outline of the data set; checks the options of both blocks. Raises UserError as `build_dataset` does."""
    source = _spec(config)
    _transform(config, "train")
    h, w = source.shape or DEFAULT_IMAGE_SHAPE
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
    kinds = registries(config)[1]
    name, options = kinds.read_block(config.augment, "data.augment")
    return kinds.build(name, split, where="data.augment", **options)


def _spec(config: DataConfig) -> Any:
    kinds = registries(config)[0]
    name, options = kinds.read_block(config.dataset, "data.dataset")
    return kinds.build(name, where="data.dataset", **options)
