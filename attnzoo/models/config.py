"""Options of all models, and of the backbone and neck of detectors."""

# ruff: noqa: RUF009 — the functions called in defaults return dataclasses.field

from dataclasses import dataclass, field
from typing import Any, Literal

from attnzoo.schema.fields import COUNT, number, numbers


@dataclass
class ModelConfig:
    """Options of the models of all tasks."""

    preset: str | None = None  # published model; the other keys override its values
    num_classes: int | None = number(None, COUNT)  # null: number of classes of the data set
    # file, run folder or Hugging Face folder with weights of the whole model, of any known source (`attnzoo weights`);
    # null: random initialisation
    weights: str | None = None


@dataclass
class BackboneConfig:
    """Backbone: a timm model or a hierarchical ViT preset, as feature extractor."""

    name: str = "resnet50"
    # keyword arguments of timm.create_model, or overrides of the preset; dropped when the name changes
    options: dict[str, Any] = field(default_factory=dict, metadata={"options_of": "name"})
    strides: list[int] = numbers([8, 16, 32], COUNT)  # of the feature maps used, ascending
    dilation: bool = False  # DC5: last stage dilated instead of strided, so stride 32 becomes 16
    # frozen: BatchNorm with fixed statistics, weight and bias; trained: norms as the backbone defines them
    norm: Literal["frozen", "trained"] = "frozen"
    # prefixes of parameters that are not trained; null: conv1 and layer1 of ResNets as published, otherwise none
    freeze: list[str] | None = None
    # file, run folder or Hugging Face folder, of a backbone, classifier or detector; null: random initialisation
    weights: str | None = None


@dataclass
class NeckConfig:
    """Neck: projection of the backbone's feature maps to a pyramid with `dim` channels."""

    norm: Literal["group", "none"] = "group"  # group: GroupNorm with gcd(32, dim) groups of 2 or more channels
    c6: bool = True  # extra level: 3x3 stride-2 convolution on the last backbone map
    fpn: bool = False  # top-down pathway (FPN)
    level_embedding: bool = True  # learned embedding per level, added to the position embedding
    # sine position embedding: pixel i is at i + 0.5 (deformable_detr) or i + 1 (detr)
    position: Literal["deformable_detr", "detr"] = "deformable_detr"
