"""Options of DETR-style detectors."""

# ruff: noqa: RUF009 — the functions called in defaults return dataclasses.field

from dataclasses import dataclass, field
from typing import Literal

from attnzoo.models.config import BackboneConfig, ModelConfig, NeckConfig
from attnzoo.schema.fields import (
    BELOW_ONE,
    COUNT,
    FRACTION,
    LAYERS,
    NON_NEGATIVE,
    OPEN_FRACTION,
    SOME_LAYERS,
    NamedBlock,
    named,
    number,
)


@dataclass
class EncoderConfig:
    layers: int = number(6, LAYERS)  # 0: no encoder
    attention: NamedBlock = named("ms_deform")


@dataclass
class DecoderConfig:
    layers: int = number(6, SOME_LAYERS)
    attention: NamedBlock = named("ms_deform")  # cross-attention; self-attention is always dense
    norm: bool = False  # LayerNorm before the prediction heads (DETR)
    learned_content: bool = True  # learned content embedding per query; false: zeros (DETR)


@dataclass
class HeadConfig:
    # relative: offset to the reference point or box in logit space; absolute: coordinates in the image
    boxes: Literal["relative", "absolute"] = "relative"
    shared: bool | None = None  # one pair of heads for all decoder layers; null: shared unless boxes are refined
    refine: bool = False  # iterative box refinement: each layer predicts offsets to the boxes of the previous layer
    two_stage: bool = False  # queries are the top-k encoder proposals
    # two-stage: rank proposals by the logit of class 0, trained as objectness (class_agnostic, as published), or by
    # their highest class logit (max_class)
    select: Literal["class_agnostic", "max_class"] = "class_agnostic"
    # two-stage: query content from the sine embedding of the proposal box, or the encoder token (memory)
    content: Literal["position", "memory"] = "position"
    # two-stage: width and height of initial proposals at the finest level, doubled per level
    anchor_size: float = number(0.05, OPEN_FRACTION)
    # initial bias of width and height in logit space, where references are points (where they are boxes, such as
    # proposals of two stages, it is 0); null: PyTorch's default
    box_size_bias: float | None = -2.0
    # focal: initial class probability; null: PyTorch's default bias
    class_prior: float | None = number(0.01, OPEN_FRACTION)


@dataclass
class LossConfig:
    classification: Literal["focal", "cross_entropy"] = "focal"
    class_weight: float = number(2.0, NON_NEGATIVE)  # weight of the classification loss
    l1_weight: float = number(5.0, NON_NEGATIVE)  # weight of the L1 loss of boxes
    giou_weight: float = number(2.0, NON_NEGATIVE)  # weight of the generalised IoU loss of boxes
    match_class: float = number(2.0, NON_NEGATIVE)  # weights of the same three in matching
    match_l1: float = number(5.0, NON_NEGATIVE)
    match_giou: float = number(2.0, NON_NEGATIVE)
    no_object_weight: float = number(0.1, NON_NEGATIVE)  # cross_entropy: weight of the "no object" class
    focal_alpha: float = number(0.25, FRACTION)  # focal: weight of positives; negatives have 1 - alpha
    focal_gamma: float = number(2.0, NON_NEGATIVE)  # focal: down-weighting of easy examples
    auxiliary: bool = True  # auxiliary losses on all decoder layers


@dataclass
class DetectorConfig(ModelConfig):
    """DETR-style detector."""

    dim: int = number(256, COUNT)  # channels of encoder and decoder
    heads: int = number(8, COUNT)  # attention heads
    ffn: int = number(1024, COUNT)  # hidden channels of the feed-forward networks
    dropout: float = number(0.1, BELOW_ONE)
    queries: int = number(300, COUNT)  # object queries
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    neck: NeckConfig = field(default_factory=NeckConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)
