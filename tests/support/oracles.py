"""Tiny detectors of transformers and attnzoo with the same random weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnzoo import interop, models
from attnzoo.models.detr.detector import Detector
from attnzoo.models.weights.sources import detect
from support.losses import CLASSES, random_targets

DIM, LAYERS, QUERIES = 64, 3, 20
HEIGHT, WIDTH = 160, 192


@dataclass
class Case:
    """A preset and the options of transformers that build the same model."""

    preset: str
    transformers_options: dict[str, Any]

    @property
    def dense(self) -> bool:
        return self.preset.startswith("detr")

    @property
    def multi_scale(self) -> bool:
        return self.transformers_options.get("num_feature_levels") == 4


CASES = {
    "detr": Case("detr_r50", {"auxiliary_loss": False}),
    "single_scale": Case("deformable_detr_r50_single_scale", {"num_feature_levels": 1}),
    "multi_scale": Case("deformable_detr_r50", {"num_feature_levels": 4}),
    "refine": Case("deformable_detr_r50_refine", {"num_feature_levels": 4, "with_box_refine": True}),
    "two_stage": Case(
        "deformable_detr_r50_two_stage", {"num_feature_levels": 4, "with_box_refine": True, "two_stage": True}
    ),
}


def transformers_model(case: Case) -> nn.Module:
    """The model of transformers 4.57.6 in evaluation mode, all parameters perturbed and trainable."""
    from transformers import (
        DeformableDetrConfig,
        DeformableDetrForObjectDetection,
        DetrConfig,
        DetrForObjectDetection,
        ResNetConfig,
    )

    backbone = ResNetConfig(
        embedding_size=64,
        hidden_sizes=[16, 32, 64, 128],
        depths=[1] * 4,
        layer_type="bottleneck",
        out_features=["stage2", "stage3", "stage4"] if case.multi_scale else ["stage4"],
    )
    options: dict[str, Any] = {
        "backbone_config": backbone,
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
        "num_labels": CLASSES,
        "num_queries": QUERIES,
        "d_model": DIM,
        "encoder_layers": 2,
        "decoder_layers": LAYERS,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "dropout": 0.0,
    }
    torch.manual_seed(0)
    if case.dense:
        model: nn.Module = DetrForObjectDetection(DetrConfig(**options | case.transformers_options))
    else:
        options |= {"auxiliary_loss": True, "class_cost": 2, "two_stage_num_proposals": QUERIES}
        model = DeformableDetrForObjectDetection(DeformableDetrConfig(**options | case.transformers_options))
    perturb(model)
    return model.eval().requires_grad_(True)


def converted_model(case: Case, state: dict[str, Tensor]) -> Detector:
    """The preset with converted weights of transformers."""
    model = small_model(case)
    interop.load(model, state)
    return model


def small_model(case: Case) -> Detector:
    """The preset with the sizes of `transformers_model`, in evaluation mode."""
    torch.manual_seed(1)
    return models.create(
        case.preset,
        num_classes=CLASSES,
        dim=DIM,
        heads=4,
        ffn=128,
        dropout=0.0,
        queries=QUERIES,
        backbone={"options": {"layers": [1, 1, 1, 1], "channels": [4, 8, 16, 32]}, "freeze": []},
        encoder={"layers": 2},
        decoder={"layers": LAYERS},
    ).eval()


def converted_state(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tensors of another implementation, such as gradients, under the names of our model."""
    source, state, _ = detect(state)
    assert source is not None
    return source.convert(state, model.state_dict()).tensors


def perturb(model: nn.Module, seed: int = 0) -> None:
    """Add noise to every parameter and buffer except masks, since zero weights hide mistakes."""
    g = torch.Generator().manual_seed(seed)
    visited = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.data_ptr() in visited or not tensor.is_floating_point() or name.endswith("attn_mask"):
            continue
        visited.add(tensor.data_ptr())
        noise = torch.randn(tensor.shape, generator=g)
        with torch.no_grad():
            tensor.add_(0.1 * noise.abs() if name.endswith("running_var") else 0.1 * noise)


def padded_batch() -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Two images with targets, the second padded at the right and bottom: images, mask (True where padded), targets."""
    g = torch.Generator().manual_seed(3)
    images = torch.randn(2, 3, HEIGHT, WIDTH, generator=g)
    mask = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    mask[1, HEIGHT - 32 :] = True
    mask[1, :, WIDTH - 64 :] = True
    return images.masked_fill(mask[:, None], 0), mask, random_targets(3, 2)
