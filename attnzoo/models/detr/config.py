"""The options of detectors of the DETR family."""

# ruff: noqa: RUF009 — the functions called in defaults return dataclasses.field

from dataclasses import dataclass, field
from typing import Literal

from attnzoo.models.config import BackboneConfig, ModelConfig, NeckConfig
from attnzoo.schema.fields import BELOW_ONE, COUNT, FRACTION, NON_NEGATIVE, OPEN_FRACTION, NamedBlock, named, number


@dataclass
class EncoderConfig:
    layers: int = number(6, NON_NEGATIVE)
    attention: NamedBlock = named("ms_deform")


@dataclass
class DecoderConfig:
    layers: int = number(6, COUNT)
    attention: NamedBlock = named("ms_deform")  # cross-attention; self-attention is always dense
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
    anchor_size: float = number(0.05, OPEN_FRACTION)
    box_size_bias: float | None = -2.0  # initial bias of width and height in logit space; null: PyTorch's default
    # initial class probability (focal); null: PyTorch's default
    class_prior: float | None = number(0.01, OPEN_FRACTION)


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
    focal_alpha: float = number(0.25, FRACTION)  # focal: weight of positives against negatives
    focal_gamma: float = number(2.0, NON_NEGATIVE)  # focal: how much easy examples are discounted
    auxiliary: bool = True  # the same losses on every decoder layer


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
