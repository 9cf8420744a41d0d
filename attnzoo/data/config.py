"""Config of data sets and batches."""

# ruff: noqa: RUF009 — the functions called in defaults return dataclasses.field

from dataclasses import dataclass

from attnzoo.schema.fields import COUNT, FRACTION, NON_NEGATIVE, WORKERS, NamedBlock, named, number


@dataclass
class DataConfig:
    dataset: NamedBlock = named("digit_scenes")
    augment: NamedBlock = named("none")  # of training images; also sets the evaluation size
    batch_size: int = number(2, COUNT)  # global, per optimiser step before accumulation
    val_batch_size: int | None = number(None, COUNT)  # images per process in evaluation; null: batch_size
    workers: int = number(0, WORKERS)  # loader workers per training process


@dataclass
class ProbeDataConfig(DataConfig):
    dataset: NamedBlock = named("read")
    batch_size: int = number(16, COUNT)  # maps


@dataclass
class ClassificationDataConfig(DataConfig):
    dataset: NamedBlock = named("digits")
    # alpha of Beta(alpha, alpha), for mixup and for CutMix; 0: off
    mixup: float = number(0.0, NON_NEGATIVE)
    cutmix: float = number(0.0, NON_NEGATIVE)  # likewise
    mix_switch: float = number(0.5, FRACTION)  # fraction of batches with CutMix if both are on
