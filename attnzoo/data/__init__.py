"""Data for detection and classification: data sets, augmentation, batches, evaluation."""

from typing import Any

from attnzoo.config.schema import ClassificationDataConfig, DataConfig
from attnzoo.data import augment, augment_images, coco, digits, scenes  # noqa: F401 - importing registers them
from attnzoo.data.batches import Batch, Draw, EpochBatches, collate, loader, val_indices
from attnzoo.data.classification import IMAGE_AUGMENTATIONS, LABELLED, LabelledBatch, LabelledDataset, collate_labelled
from attnzoo.data.coco import DetectionDataset
from attnzoo.data.evaluate import CocoEvaluator, Row
from attnzoo.data.registries import AUGMENTATIONS, DATASETS

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "IMAGE_AUGMENTATIONS",
    "LABELLED",
    "Batch",
    "CocoEvaluator",
    "DetectionDataset",
    "Draw",
    "EpochBatches",
    "LabelledBatch",
    "LabelledDataset",
    "Row",
    "build_dataset",
    "collate",
    "collate_labelled",
    "loader",
    "num_classes",
    "val_indices",
]


def build_dataset(config: DataConfig, split: str) -> Any:
    """The "train" or "val" split with the transform that belongs to it: a DetectionDataset or LabelledDataset.

    Raises UserError for unknown names and options, and for missing or damaged files.
    """
    return _source(config).open(split, _transform(config, split))


def num_classes(config: DataConfig) -> int:
    """The number of class indices of the data set; checks both blocks' options, and reads or makes no images."""
    _transform(config, "train")
    return int(_source(config).num_classes)


def _transform(config: DataConfig, split: str) -> Any:
    kinds = IMAGE_AUGMENTATIONS if isinstance(config, ClassificationDataConfig) else AUGMENTATIONS
    name, options = _parts(config.augment)
    return kinds.build(name, split, where="data.augment", **options)


def _source(config: DataConfig) -> Any:
    kinds = LABELLED if isinstance(config, ClassificationDataConfig) else DATASETS
    name, options = _parts(config.dataset)
    return kinds.build(name, where="data.dataset", **options)


def _parts(block: dict[str, object]) -> tuple[str, dict[str, object]]:
    options = dict(block)
    return str(options.pop("name")), options
