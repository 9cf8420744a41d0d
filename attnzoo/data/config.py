"""The options of data sets and batches."""

# ruff: noqa: RUF009 — the functions called in defaults return dataclasses.field

from dataclasses import dataclass

from attnzoo.schema.fields import COUNT, FRACTION, NON_NEGATIVE, NamedBlock, named, number


@dataclass
class DataConfig:
    dataset: NamedBlock = named("digit_scenes")
    augment: NamedBlock = named("none")  # of training images
    batch_size: int = number(2, COUNT)  # of all processes together, per optimiser step before accumulation
    val_batch_size: int | None = number(None, COUNT)  # images that one process evaluates at a time; null: batch_size
    workers: int = number(0, NON_NEGATIVE)  # loader processes per training process


@dataclass
class ClassificationDataConfig(DataConfig):
    dataset: NamedBlock = named("digits")
    # images of a batch mixed in pairs: weights by Beta(mixup, mixup), or areas by Beta(cutmix, cutmix); 0: never
    mixup: float = number(0.0, NON_NEGATIVE)
    cutmix: float = number(0.0, NON_NEGATIVE)
    mix_switch: float = number(0.5, FRACTION)  # share of batches with cutmix, where both are on
