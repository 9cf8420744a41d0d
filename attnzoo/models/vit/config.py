"""Options of hierarchical ViTs and of classifiers."""

# ruff: noqa: RUF009 — the functions called in defaults return dataclasses.field

from dataclasses import dataclass, field
from typing import Any, Literal

from attnzoo.models.config import ModelConfig
from attnzoo.schema.fields import BELOW_ONE, COUNT, LAYERS, POSITIVE, NamedBlock, Range, named, number, numbers


@dataclass
class StageConfig:
    """One stage: blocks of equal width on one feature map."""

    dim: int = number(96, COUNT)  # channels
    depth: int = number(2, LAYERS)  # blocks; 0 (last stages only): the model ends before this stage
    heads: int = number(3, COUNT)  # attention heads
    first: NamedBlock = named("window")  # attention 1
    second: NamedBlock = named("window")  # attention 2
    pattern: list[int] = numbers([1, 2], Range(1, 2))  # attentions of consecutive blocks, repeated
    grad_checkpointing: bool = False  # recompute blocks in the backward pass to save memory


def _stage(dim: int, depth: int, heads: int) -> Any:
    return field(default_factory=lambda: StageConfig(dim, depth, heads))


@dataclass
class VitConfig:
    """Hierarchical ViT: four stages, each at half the resolution of the previous one. Default sizes are Swin-T's."""

    image_size: int = number(224, COUNT)  # pixels; sets the size of position bias tables, but any image size runs
    # patch: 4x4 patches (Swin, DAT); overlap: two 3x3 stride-2 convolutions (DAT++)
    patch_embed: Literal["patch", "overlap"] = "patch"
    # merge: patch merging (Swin); conv: 2x2 stride-2 convolution (DAT); overlap: 3x3 stride-2 convolution (DAT++)
    downsample: Literal["merge", "conv", "overlap"] = "merge"
    stage1: StageConfig = _stage(96, 2, 3)
    stage2: StageConfig = _stage(192, 2, 6)
    stage3: StageConfig = _stage(384, 6, 12)
    stage4: StageConfig = _stage(768, 2, 24)
    mlp_ratio: float = number(4.0, POSITIVE)  # hidden channels of the MLP per channel of the stage
    mlp_conv: bool = False  # depthwise 3x3 convolution in the MLP (DAT++)
    local_perception: bool = False  # depthwise 3x3 convolution with residual before each attention (DAT++)
    layer_scale: float | None = number(None, POSITIVE)  # initial value of LayerScale; null: no LayerScale
    # swin: linear layers trunc_normal(0.02), biases 0; pytorch: PyTorch's defaults, window bias tables
    # trunc_normal(0.01) (DAT, whose reset_parameters has no effect); other attentions keep their own initialisation
    init: Literal["swin", "pytorch"] = "swin"
    dropout: float = number(0.0, BELOW_ONE)  # in the MLP
    drop_path: float = number(0.2, BELOW_ONE)  # stochastic depth rate of the last block, linear from 0 at the first


@dataclass
class ClassifierConfig(VitConfig, ModelConfig):
    """Image classifier: hierarchical ViT with a linear head."""

    label_smoothing: float = number(0.0, BELOW_ONE)  # fraction of each target spread over all classes
