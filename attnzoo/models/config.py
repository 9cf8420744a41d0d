"""The options that all models share, and those of backbone and neck."""

# ruff: noqa: RUF009 — the functions called in defaults return dataclasses.field

from dataclasses import dataclass, field
from typing import Any, Literal

from attnzoo.schema.fields import COUNT, number, numbers


@dataclass
class ModelConfig:
    """What the models of all tasks have; `preset` names a published one, on which the other keys build."""

    preset: str | None = None
    num_classes: int | None = number(None, COUNT)  # null: as many as the data set has


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
