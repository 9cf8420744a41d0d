"""Detection data: data sets, augmentation, batches, evaluation."""

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
    "Row",
    "build_dataset",
    "collate",
    "loader",
    "num_classes",
    "val_indices",
]


def build_dataset(config: DataConfig, split: str) -> DetectionDataset:
    """The "train" or "val" split with the transform that belongs to it.

    Raises UserError for unknown names and options, and for missing or damaged files.
    """
    name, options = _parts(config.augment)
    transform = AUGMENTATIONS.build(name, split, where="data.augment", **options)
    dataset: DetectionDataset = _source(config).open(split, transform)
    return dataset


def num_classes(config: DataConfig) -> int:
    """The number of class indices of the data set; checks both blocks' options, and reads or makes no images."""
    name, options = _parts(config.augment)
    AUGMENTATIONS.build(name, "train", where="data.augment", **options)
    return _source(config).num_classes


def _source(config: DataConfig) -> Source:
    name, options = _parts(config.dataset)
    source: Source = DATASETS.build(name, where="data.dataset", **options)
    return source


def _parts(block: dict[str, object]) -> tuple[str, dict[str, object]]:
    options = dict(block)
    return str(options.pop("name")), options
