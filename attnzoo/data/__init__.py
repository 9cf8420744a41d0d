"""Detection data: data sets, augmentation, batches, evaluation."""

from dataclasses import dataclass

import torch
from torchvision import tv_tensors

from attnzoo.config.schema import DataConfig
from attnzoo.data import augment, coco, scenes  # noqa: F401 - importing registers them
from attnzoo.data.batches import Batch, Draw, EpochBatches, collate, loader, val_indices
from attnzoo.data.coco import DetectionDataset
from attnzoo.data.evaluate import CocoEvaluator, Row
from attnzoo.data.registries import AUGMENTATIONS, DATASETS, Source

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Batch",
    "CocoEvaluator",
    "DetectionDataset",
    "Draw",
    "EpochBatches",
    "Outline",
    "Row",
    "build_dataset",
    "collate",
    "loader",
    "outline",
    "val_indices",
]

LIKELY_SHAPE = (480, 640)  # the most common of COCO's photographs


def build_dataset(config: DataConfig, split: str) -> DetectionDataset:
    """The "train" or "val" split with the transform that belongs to it.

    Raises UserError for unknown names and options, and for missing or damaged files.
    """
    name, options = AUGMENTATIONS.read_block(config.augment, "data.augment")
    transform = AUGMENTATIONS.build(name, split, where="data.augment", **options)
    dataset: DetectionDataset = _source(config).open(split, transform)
    return dataset


@dataclass(frozen=True)
class Outline:
    """What is known of a data set before any image is read or made.

    `num_classes` class indices; `size` (h, w) in pixels as the model is given images in evaluation, or a likely one;
    `train_length` training images, or None.
    """

    num_classes: int
    size: tuple[int, int]
    train_length: int | None


def outline(config: DataConfig) -> Outline:
    """The outline of the data set; checks the options of both blocks. Raises UserError as `build_dataset` does."""
    source = _source(config)
    name, options = AUGMENTATIONS.read_block(config.augment, "data.augment")
    AUGMENTATIONS.build(name, "train", where="data.augment", **options)
    transform = AUGMENTATIONS.build(name, "val", where="data.augment", **options)
    h, w = source.shape or LIKELY_SHAPE
    boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(h, w))
    target = {"boxes": boxes, "labels": torch.zeros(0, dtype=torch.int64)}
    image, _ = transform(tv_tensors.Image(torch.zeros(3, h, w, dtype=torch.uint8)), target)
    return Outline(source.num_classes, (image.shape[-2], image.shape[-1]), source.train_length)


def _source(config: DataConfig) -> Source:
    name, options = DATASETS.read_block(config.dataset, "data.dataset")
    source: Source = DATASETS.build(name, where="data.dataset", **options)
    return source
