"""The typed schema of an experiment file: every key, its type and its default.

A block typed `dict` with a `name` is a *named block*: the name selects a registered constructor, the other
keys are its options, checked against its signature. Changing the name drops the old options.

A `Literal` lists the words a key takes; `number` and `numbers` give the range of a number, or of each in a list. All
numbers are finite, those in options of named blocks too.
"""

# ruff: noqa: RUF009 — the functions called in defaults return dataclasses.field

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING

NamedBlock = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`; None is no limit, an open end is not itself a member."""

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        below = self.high is None or (value < self.high if self.open_high else value <= self.high)
        return (isinstance(value, int) or math.isfinite(value)) and above and below  # isfinite overflows on large ints

    def __str__(self) -> str:
        low = [] if self.low is None else [f"{'more than' if self.open_low else 'at least'} {self.low}"]
        high = [] if self.high is None else [f"{'less than' if self.open_high else 'at most'} {self.high}"]
        return "a number " + " and ".join(low + high) if low or high else "a finite number"


FINITE = Range()
COUNT = Range(low=1)
NON_NEGATIVE = Range(low=0)
POSITIVE = Range(low=0, open_low=True)
SHARE = Range(low=0, high=1)
BELOW_ONE = Range(low=0, high=1, open_high=True)
SEED = Range(low=0, high=2**32 - 1)
INSIDE_SHARE = Range(low=0, high=1, open_low=True, open_high=True)


def number(default: Any, within: Range) -> Any:
    """A field for a number, or null, in a range."""
    return field(default=default, metadata={"range": within})


def numbers(default: list[Any], within: Range) -> Any:
    """A field for a list whose every number is in a range; it is empty only where the default is."""
    return field(default_factory=lambda: list(default), metadata={"range": within, "filled": bool(default)})


def _named(name: str) -> Any:
    return field(default_factory=lambda: {"name": name}, metadata={"named_block": True})


@dataclass
class StageConfig:
    """One stage of a hierarchical vision transformer: blocks of one width on one map."""

    dim: int = number(96, COUNT)
    depth: int = number(2, NON_NEGATIVE)  # blocks; 0: the model ends before this stage
    heads: int = number(3, COUNT)
    first: NamedBlock = _named("window")
    second: NamedBlock = _named("window")
    pattern: list[int] = numbers([1, 2], Range(1, 2))  # which of the two stands in each block, over and over
    checkpoint: bool = False  # compute the blocks again in the backward pass instead of keeping what they computed


def _stage(dim: int, depth: int, heads: int) -> Any:
    return field(default_factory=lambda: StageConfig(dim, depth, heads))


@dataclass
class VitConfig:
    """A hierarchical vision transformer: four stages, the map halved between them. The defaults are sized as Swin-T."""

    image_size: int = number(224, COUNT)  # pixels; tables that depend on it are made for it, but all sizes run
    # patch: 4x4 pixels each (Swin, DAT), overlap: two 3x3 stride-2 convolutions (DAT++)
    embed: Literal["patch", "overlap"] = "patch"
    # merge: four neighbours concatenated (Swin), conv: 2x2 stride 2 (DAT), overlap: 3x3 stride 2 (DAT++)
    down: Literal["merge", "conv", "overlap"] = "merge"
    stage1: StageConfig = _stage(96, 2, 3)
    stage2: StageConfig = _stage(192, 2, 6)
    stage3: StageConfig = _stage(384, 6, 12)
    stage4: StageConfig = _stage(768, 2, 24)
    mlp_ratio: float = number(4.0, POSITIVE)  # hidden width of feed-forward networks, in widths of the stage
    mlp_conv: bool = False  # a depthwise 3x3 convolution between their two layers (DAT++)
    local_perception: bool = False  # a depthwise 3x3 convolution with residual before each attention (DAT++)
    layer_scale: float | None = number(None, POSITIVE)  # initial factor of every residual branch, learned; null: none
    dropout: float = number(0.0, BELOW_ONE)  # in feed-forward networks
    drop_path: float = number(0.2, BELOW_ONE)  # of the last block; grows linearly from 0 at the first


@dataclass
class BackboneConfig:
    """A timm model, or a preset of a hierarchical vision transformer, as feature pyramid."""

    name: str = "resnet50"
    # passed to timm.create_model, or changed in the preset; dropped when the name changes
    options: dict[str, Any] = field(default_factory=dict, metadata={"options_of": "name"})
    strides: list[int] = numbers([8, 16, 32], COUNT)  # of the maps taken
    dilation: bool = False  # DC5: the last stage dilated instead of strided, so stride 32 becomes 16
    # frozen: BatchNorm as buffers, trained: whatever norm the backbone has
    norm: Literal["frozen", "trained"] = "frozen"
    # name prefixes that are not trained; null: conv1 and layer1 of a ResNet, as published, else nothing
    freeze: list[str] | None = None
    weights: str | None = None  # a state-dict file; null: random


@dataclass
class NeckConfig:
    """From backbone maps to a pyramid of equal width."""

    norm: Literal["group", "none"] = "group"  # group: GroupNorm of 32 groups, fewer where they do not divide dim
    c6: bool = True  # one more level by a 3x3 stride-2 convolution on the last raw map
    fpn: bool = False  # top-down pathway before the levels are concatenated
    level_embedding: bool = True
    # centered: i + 0.5 (Deformable DETR), cornered: i + 1 (DETR)
    position: Literal["centered", "cornered"] = "centered"


@dataclass
class EncoderConfig:
    layers: int = number(6, NON_NEGATIVE)
    attention: NamedBlock = _named("ms_deform")


@dataclass
class DecoderConfig:
    layers: int = number(6, COUNT)
    attention: NamedBlock = _named("ms_deform")  # cross-attention; self-attention is always dense
    norm: bool = False  # a final LayerNorm on every returned layer (DETR)
    learned_content: bool = True  # queries learn a content vector beside their position; false: zeros (DETR)


@dataclass
class HeadConfig:
    # relative: offset from the reference, in logit space
    boxes: Literal["relative", "absolute"] = "relative"
    shared: bool | None = None  # one pair of heads for all layers; null: shared unless boxes are refined
    refine: bool = False  # each layer starts from the boxes of the one before
    two_stage: bool = False  # queries come from encoder proposals
    # two-stage top-k by the logit of class 0 ("first") or of the best class ("best")
    select: Literal["first", "best"] = "first"
    # two-stage query content: from the sine embedding of the proposed box, or the token that proposed it
    content: Literal["position", "memory"] = "position"
    # two-stage proposals: width and height at the finest level, doubled per level
    anchor_size: float = number(0.05, INSIDE_SHARE)
    box_size_bias: float | None = -2.0  # initial bias of width and height in logit space; null: PyTorch's default
    # initial class probability (focal); null: PyTorch's default
    class_prior: float | None = number(0.01, INSIDE_SHARE)


@dataclass
class LossConfig:
    classification: Literal["focal", "cross_entropy"] = "focal"
    class_weight: float = number(2.0, NON_NEGATIVE)
    l1_weight: float = number(5.0, NON_NEGATIVE)
    giou_weight: float = number(2.0, NON_NEGATIVE)
    match_class: float = number(2.0, NON_NEGATIVE)
    match_l1: float = number(5.0, NON_NEGATIVE)
    match_giou: float = number(2.0, NON_NEGATIVE)
    no_object_weight: float = number(0.1, NON_NEGATIVE)  # cross_entropy: weight of the no-object class
    focal_alpha: float = number(0.25, SHARE)  # focal: weight of positives against negatives
    focal_gamma: float = number(2.0, NON_NEGATIVE)  # focal: how much easy examples are discounted
    auxiliary: bool = True  # the same losses on every decoder layer


@dataclass
class ModelConfig:
    """What the models of all tasks have; `preset` names a published one, on which the other keys build."""

    preset: str | None = None
    num_classes: int | None = number(None, COUNT)  # null: as many as the data set has


@dataclass
class DetectorConfig(ModelConfig):
    """A detector of the DETR family."""

    dim: int = number(256, COUNT)
    heads: int = number(8, COUNT)
    ffn: int = number(1024, COUNT)
    dropout: float = number(0.1, BELOW_ONE)
    queries: int = number(300, COUNT)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    neck: NeckConfig = field(default_factory=NeckConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)


@dataclass
class ClassifierConfig(VitConfig, ModelConfig):
    """An image classifier: a hierarchical vision transformer with a linear head."""

    weights: str | None = None  # a state-dict file to start from, tables of other sizes stretched; null: random
    label_smoothing: float = number(0.0, BELOW_ONE)  # share of every target that is spread over all classes


@dataclass
class DataConfig:
    dataset: NamedBlock = _named("digit_scenes")
    augment: NamedBlock = _named("none")  # of training images
    batch_size: int = number(2, COUNT)  # of all processes together, per optimiser step before accumulation
    val_batch_size: int | None = number(None, COUNT)  # images that one process evaluates at a time; null: batch_size
    workers: int = number(0, NON_NEGATIVE)  # loader processes per training process


@dataclass
class ClassificationDataConfig(DataConfig):
    dataset: NamedBlock = _named("digits")
    # images of a batch mixed in pairs: weights by Beta(mixup, mixup), or areas by Beta(cutmix, cutmix); 0: never
    mixup: float = number(0.0, NON_NEGATIVE)
    cutmix: float = number(0.0, NON_NEGATIVE)
    mix_switch: float = number(0.5, SHARE)  # share of batches with cutmix, where both are on


@dataclass
class OptimizerConfig:
    name: str = "adamw"  # or any other of timm.optim
    lr: float = number(2e-4, POSITIVE)
    weight_decay: float = number(1e-4, NON_NEGATIVE)
    decay_1d: bool = True  # also decay biases and normalisations
    no_decay: list[str] = field(default_factory=list)  # parts of the names of other parameters that do not decay
    # part of a parameter's name -> factor of lr
    lr_multipliers: dict[str, float] = field(default_factory=dict, metadata={"range": NON_NEGATIVE})


@dataclass
class ScheduleConfig:
    name: Literal["cosine", "step", "constant"] = "cosine"
    warmup: float = number(0.0, BELOW_ONE)  # share of all steps
    warmup_from: float | None = number(None, SHARE)  # share of lr at the first step; null: one warm-up step's
    floor: float = number(0.0, SHARE)  # cosine: share of lr at the end
    after_warmup: bool = True  # cosine: it begins when warm-up ends; false: at the first step, hidden by warm-up (DAT)
    milestones: list[float] = numbers([], SHARE)  # step: shares of all steps
    gamma: float = number(0.1, POSITIVE)  # step: factor at each milestone


@dataclass
class TrainConfig:
    steps: int | None = number(None, COUNT)  # optimiser steps; exactly one of steps and epochs
    epochs: int | None = number(None, COUNT)
    accumulate: int = number(1, COUNT)  # batches per optimiser step
    clip: float | None = number(0.1, POSITIVE)  # maximum gradient norm
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast
    ema: float | None = number(None, BELOW_ONE)  # decay of the averaged weights that are then evaluated
    # how several processes share the model. ddp: all of it in each, fsdp2: a part of every tensor in each
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    compile: bool = False
    channels_last: bool = False
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    log_every: int = number(50, COUNT)  # steps
    eval_every: int | None = number(None, COUNT)  # steps; null: once, at the end
    checkpoint_every: int | None = number(None, COUNT)  # steps; null: by time only
    checkpoint_minutes: float = number(10.0, POSITIVE)


@dataclass
class SweepConfig:
    # key -> values: all combinations, and values taken side by side; a later file replaces them
    grid: dict[str, list[Any]] = field(default_factory=dict, metadata={"replaced": True})
    zip: dict[str, list[Any]] = field(default_factory=dict, metadata={"replaced": True})
    exclude: list[dict[str, Any]] = field(default_factory=list)  # combinations left out
    seeds: list[int] = numbers([], SEED)  # each variant runs once per seed; empty: [seed]


@dataclass
class SlurmConfig:
    """What one run asks of a SLURM cluster; `profile` names a file of these keys, on which the other keys build."""

    profile: str | None = None  # slurm/NAME.yaml, or the path of a file
    partition: str | None = None  # null, here and below: the cluster's default
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = number(1, COUNT)
    tasks_per_node: int | None = number(None, COUNT)  # null: processes / nodes
    gpus_per_node: int = number(0, NON_NEGATIVE)
    cpus_per_task: int = number(1, COUNT)
    memory: int | str | None = None  # of a node: 500M, 16G
    time: int | str = 60  # minutes, or HH:MM:SS, or D-HH:MM:SS
    signal_seconds: int = number(120, COUNT)  # before the end of its time a run is told to save
    retries: int | None = number(None, NON_NEGATIVE)  # null: the experiment's
    parallelism: int | None = number(None, COUNT)  # runs of a job array at a time; null: all
    setup: list[str] = field(default_factory=list)  # shell lines before a run starts, such as module loads
    # any other of sbatch: {reservation: name, nice: 10, exclusive: true}
    options: dict[str, bool | int | str] = field(default_factory=dict)


@dataclass
class ExperimentConfig:
    """What the experiments of all tasks have; `task` selects the schema of `data` and `model`."""

    name: str = MISSING
    description: str = ""
    task: Literal["detection", "classification"] = "detection"
    output: str = "runs"
    seed: int = number(0, SEED)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = number(1, COUNT)  # CPU threads per process: part of the result, never changed by `jobs`
    processes: int = number(1, COUNT)  # of one run, through torch.distributed
    plugins: list[str] = field(default_factory=list)  # Python files or modules that register attentions
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    launcher: Literal["local", "slurm"] = "local"
    jobs: int = number(1, COUNT)  # local: runs at a time
    retries: int = number(3, NON_NEGATIVE)  # after failures of the machine in a row, without a new checkpoint between
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


@dataclass
class DetectionExperiment(ExperimentConfig):
    per_class: bool = False  # evaluation also gives AP and AP50 of every class
    model: DetectorConfig = field(default_factory=DetectorConfig)


@dataclass
class ClassificationExperiment(ExperimentConfig):
    data: ClassificationDataConfig = field(default_factory=ClassificationDataConfig)
    model: ClassifierConfig = field(default_factory=ClassifierConfig)


EXPERIMENTS = {"detection": DetectionExperiment, "classification": ClassificationExperiment}
PRESET_FAMILY = {"detection": "detector", "classification": "vit"}
