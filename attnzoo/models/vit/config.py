"""The options of hierarchical vision transformers and classifiers."""

# ruff: noqa: RUF009 — the functions called in defaults return dataclasses.field

from dataclasses import dataclass, field
from typing import Any, Literal

from attnzoo.models.config import ModelConfig
from attnzoo.schema.fields import BELOW_ONE, COUNT, NON_NEGATIVE, POSITIVE, NamedBlock, Range, named, number, numbers


@dataclass
class StageConfig:
    """One stage of a hierarchical vision transformer: blocks of one width on one map."""

    dim: int = number(96, COUNT)
    depth: int = number(2, NON_NEGATIVE)  # blocks; 0: the model ends before this stage
    heads: int = number(3, COUNT)
    first: NamedBlock = named("window")
    second: NamedBlock = named("window")
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
class ClassifierConfig(VitConfig, ModelConfig):
    """An image classifier: a hierarchical vision transformer with a linear head."""

    weights: str | None = None  # a state-dict file to start from, tables of other sizes stretched; null: random
    label_smoothing: float = number(0.0, BELOW_ONE)  # share of every target that is spread over all classes
