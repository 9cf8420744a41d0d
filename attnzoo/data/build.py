"""Build data sets from their config blocks."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from attnzoo.data import (  # noqa: F401 - registers them
    augment_classification,
    augment_detection,
    coco,
    digits,
    probe_blobs,
    probe_places,
    scenes,
)
from attnzoo.data.classification import CLASSIFICATION_AUGMENTATIONS, CLASSIFICATION_DATASETS
from attnzoo.data.config import ClassificationDataConfig, DataConfig, ProbeDataConfig
from attnzoo.data.pixels import PixelTransform, normalise
from attnzoo.data.probes import PROBE_AUGMENTATIONS, PROBES
from attnzoo.data.registries import DETECTION_AUGMENTATIONS, DETECTION_DATASETS, SPLITS
from attnzoo.data.synthetic import SyntheticSpec
from attnzoo.errors import UserError, unknown
from attnzoo.registry import Registry

DEFAULT_IMAGE_SHAPE = (480, 640)  # the most common size in COCO


def build_dataset(config: DataConfig, split: str, run_seed: int = 0) -> Any:
    """The "train" or "val" split with its transform: a DetectionDataset, ClassificationDataset or ProbeSplit.

    `run_seed`: the seed of the run, for a generated data set with `seed: run`. Raises UserError for unknown names and
    options, and for missing or damaged files.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return _build_spec(_of_run(config, run_seed)).build(split, _build_transform(config, split))


def _of_run(config: DataConfig, run_seed: int) -> DataConfig:
    """The config with the seed of the run in place of `seed: run`."""
    dataset = dict(config.dataset)
    if dataset.get("seed") == "run":
        val_seed = dataset.get("val_seed")
        dataset |= {"seed": run_seed, "val_seed": 0 if val_seed is None else val_seed}
    return dataclasses.replace(config, dataset=dataset)


def check_cache(config: DataConfig, run_seed: int, writable: bool) -> None:
    """Raise UserError if a data set is generated and could not be, because of where the cache is.

    `writable`: whether it must be writable on this machine.
    """
    spec = _build_spec(_of_run(config, run_seed))
    if isinstance(spec, SyntheticSpec):
        spec.check_cache(writable)


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before any image is read or generated.

    `num_classes`: number of class indices. `size`: (h, w) in pixels of evaluation images, or a typical size if it
    varies. `train_length`: number of training images, or None.
    """

    num_classes: int
    size: tuple[int, int]
    train_length: int | None


def dataset_info(config: DataConfig) -> DatasetInfo:
    """The data set's DatasetInfo; checks the options of both blocks, and that the splits have the same classes.

    Raises UserError as `build_dataset` does.
    """
    spec = _build_spec(config)
    spec.check()
    _build_transform(config, "train")
    h, w = spec.image_shape or DEFAULT_IMAGE_SHAPE
    transform = _build_transform(config, "val")
    if isinstance(transform, PixelTransform):
        return DatasetInfo(spec.num_classes, (h, w), spec.train_length)
    image = evaluation_transform(config)(Image.new("RGB", (w, h)))
    return DatasetInfo(spec.num_classes, (image.shape[-2], image.shape[-1]), spec.train_length)


def evaluation_transform(config: DataConfig) -> Callable[[Image.Image], Tensor]:
    """What maps an upright RGB image to the input of a model in evaluation: (3, h, w), resized and normalised."""
    transform = _build_transform(config, "val")

    def prepare(image: Image.Image) -> Tensor:
        if isinstance(transform, PixelTransform):
            return normalise(F.pil_to_tensor(image))
        if isinstance(config, ClassificationDataConfig):
            prepared: Tensor = transform(image)
            return prepared
        boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(image.height, image.width))
        target = {"boxes": boxes, "labels": torch.zeros(0, dtype=torch.int64)}
        resized, _ = transform(tv_tensors.Image(F.pil_to_tensor(image)), target)
        return normalise(resized.as_subclass(Tensor))

    return prepare


def class_names(config: DataConfig) -> list[str]:
    """One name per class index, "N/A" for an index without class; empty if they are not known.

    Raises UserError or OSError for files that are missing.
    """
    names: list[str] = _build_spec(config).class_names
    return names


def category_ids(config: DataConfig) -> list[int | None] | None:
    """The category id of each class index of a data set in COCO format; None of others, whose ids are the indices.

    Raises UserError or OSError for files that are missing.
    """
    spec = _build_spec(config)
    return spec.category_ids if isinstance(spec, coco.CocoSpec) else None


def dataset_fingerprint(config: DataConfig) -> str | None:
    """The version of a generated data set, or a hash of the files of another.

    None for files that are missing, whose error `dataset_info` raises, or that cannot be hashed.
    """
    try:
        fingerprint: str | None = _build_spec(config).fingerprint()
        return fingerprint
    except (OSError, UserError):
        return None


def registries(config: DataConfig) -> tuple[Registry[Any], Registry[Any]]:
    """The registries of data sets and of augmentations for a task's data."""
    if isinstance(config, ClassificationDataConfig):
        return CLASSIFICATION_DATASETS, CLASSIFICATION_AUGMENTATIONS
    if isinstance(config, ProbeDataConfig):
        return PROBES, PROBE_AUGMENTATIONS
    return DETECTION_DATASETS, DETECTION_AUGMENTATIONS


def _build_spec(config: DataConfig) -> Any:
    return registries(config)[0].build_block(config.dataset, where="data.dataset")


def _build_transform(config: DataConfig, split: str) -> Any:
    return registries(config)[1].build_block(config.augment, split, where="data.augment")
