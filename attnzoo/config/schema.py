"""The typed schema of an experiment file: every key, its type and its default.

A block typed `dict` with a `name` is a *named block*: the name selects a registered constructor, the other
keys are its options, checked against its signature. Changing the name drops the old options.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

NamedBlock = dict[str, Any]


def _named(name: str) -> Any:
    return field(default_factory=lambda: {"name": name})


@dataclass
class BackboneConfig:
    """A timm model as feature pyramid."""

    name: str = "resnet50"
    options: dict[str, Any] = field(default_factory=dict)  # passed to timm.create_model
    strides: list[int] = field(default_factory=lambda: [8, 16, 32])  # of the maps taken
    dilation: bool = False  # DC5: the last stage dilated instead of strided, so stride 32 becomes 16
    norm: str = "frozen"  # frozen (buffers, not trained) | trained (whatever the backbone has)
    freeze: list[str] = field(default_factory=lambda: ["conv1", "layer1"])  # name prefixes that are not trained
    weights: str | None = None  # a state-dict file; null: random


@dataclass
class NeckConfig:
    """From backbone maps to a pyramid of equal width."""

    norm: str = "group"  # group (GroupNorm of 32 groups) | none
    c6: bool = True  # one more level by a 3x3 stride-2 convolution on the last raw map
    fpn: bool = False  # top-down pathway before the levels are concatenated
    level_embedding: bool = True
    position: str = "centered"  # centered ((i + 0.5), Deformable DETR) | cornered ((i + 1), DETR)


@dataclass
class EncoderConfig:
    layers: int = 6
    attention: NamedBlock = _named("ms_deform")


@dataclass
class DecoderConfig:
    layers: int = 6
    attention: NamedBlock = _named("ms_deform")  # cross-attention; self-attention is always dense
    norm: bool = False  # a final LayerNorm on every returned layer (DETR)
    learned_content: bool = True  # queries learn a content vector beside their position; false: zeros (DETR)


@dataclass
class HeadConfig:
    boxes: str = "relative"  # relative (offset from the reference, in logit space) | absolute
    shared: bool | None = None  # one pair of heads for all layers; null: shared unless boxes are refined
    refine: bool = False  # each layer starts from the boxes of the one before
    two_stage: bool = False  # queries come from encoder proposals
    select: str = "first"  # two-stage top-k by the logit of class 0 ("first") or of the best class ("best")
    anchor_size: float = 0.05  # two-stage proposals: width and height at the finest level, doubled per level
    box_size_bias: float | None = -2.0  # initial bias of width and height in logit space; null: PyTorch's default
    class_prior: float | None = 0.01  # initial class probability (focal); null: PyTorch's default


@dataclass
class LossConfig:
    classification: str = "focal"  # focal | cross_entropy
    class_weight: float = 2.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    match_class: float = 2.0
    match_l1: float = 5.0
    match_giou: float = 2.0
    no_object_weight: float = 0.1  # cross_entropy: weight of the no-object class
    focal_alpha: float = 0.25  # focal: weight of positives against negatives
    focal_gamma: float = 2.0  # focal: how much easy examples are discounted
    auxiliary: bool = True  # the same losses on every decoder layer


@dataclass
class ModelConfig:
    """A detector of the DETR family; `preset` names a published one, on which the other keys build."""

    preset: str | None = None
    num_classes: int | None = None  # null: as many as the data set has
    dim: int = 256
    heads: int = 8
    ffn: int = 1024
    dropout: float = 0.1
    queries: int = 300
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    neck: NeckConfig = field(default_factory=NeckConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)


@dataclass
class DataConfig:
    dataset: NamedBlock = _named("digit_scenes")
    augment: NamedBlock = _named("none")  # of training images
    batch_size: int = 2  # of all processes together, per optimiser step before accumulation
    workers: int = 0  # loader processes per training process


@dataclass
class OptimizerConfig:
    lr: float = 2e-4
    weight_decay: float = 1e-4
    decay_1d: bool = True  # also decay biases and normalisations
    lr_multipliers: dict[str, float] = field(default_factory=dict)  # name part -> factor of lr


@dataclass
class ScheduleConfig:
    name: str = "cosine"  # cosine | step | constant
    warmup: float = 0.0  # share of all steps
    milestones: list[float] = field(default_factory=list)  # step: shares of all steps
    gamma: float = 0.1  # step: factor at each milestone


@dataclass
class TrainConfig:
    steps: int | None = None  # optimiser steps; exactly one of steps and epochs
    epochs: int | None = None
    accumulate: int = 1  # batches per optimiser step
    clip: float | None = 0.1  # maximum gradient norm
    precision: str = "fp32"  # fp32 | bf16 (autocast)
    ema: float | None = None  # decay of the averaged weights that are then evaluated
    compile: bool = False
    channels_last: bool = False
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    log_every: int = 50  # steps
    eval_every: int | None = None  # steps; null: once, at the end
    checkpoint_every: int | None = None  # steps; null: by time only
    checkpoint_minutes: float = 10.0


@dataclass
class SweepConfig:
    grid: dict[str, list[Any]] = field(default_factory=dict)  # key -> values; all combinations
    zip: dict[str, list[Any]] = field(default_factory=dict)  # key -> values; taken side by side
    exclude: list[dict[str, Any]] = field(default_factory=list)  # combinations left out
    seeds: list[int] = field(default_factory=list)  # each variant runs once per seed; empty: [seed]


@dataclass
class ExperimentConfig:
    name: str = MISSING
    description: str = ""
    output: str = "runs"
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda
    threads: int = 1  # CPU threads per process: part of the result, never changed by `jobs`
    processes: int = 1  # of one run, through torch.distributed
    plugins: list[str] = field(default_factory=list)  # Python files or modules that register attentions
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    launcher: str = "local"
    jobs: int = 1  # runs at a time
