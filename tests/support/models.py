"""Tiny detectors and batches."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from attnzoo import models
from attnzoo.models.detr.detector import Detector

CLASSES = 5

Module = TypeVar("Module", bound=nn.Module)


def tiny(preset: str = "deformable_detr_r50", **overrides: Any) -> Detector:
    """A detector with 32 channels and a ResNet of four blocks."""
    backbone = {
        "name": "resnet18",
        "options": {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]},
        "norm": "trained",
        "freeze": [],
        "strides": [16],
    }
    base: dict[str, Any] = {
        "num_classes": CLASSES,
        "dim": 32,
        "heads": 4,
        "ffn": 48,
        "dropout": 0.0,
        "queries": 6,
        "encoder": {"layers": 1},
        "decoder": {"layers": 2},
    }
    blocks = {"backbone": backbone, "neck": {"c6": False}}
    for key in {**blocks, **base, **overrides}:
        value = overrides.get(key, {})
        known = blocks.get(key, base.get(key))
        base[key] = {**known, **value} if isinstance(known, dict) else overrides.get(key, known)
    torch.manual_seed(0)
    return models.create(preset, **base)


def perturbed(module: Module) -> Module:
    """Random nonzero weights, as after training."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module.eval()


def without_gradient(module: nn.Module) -> list[str]:
    """Trainable parameters without gradient after a backward pass."""
    return [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]


def padded_images(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Two images, the second padded at the bottom: images, mask."""
    mask = torch.zeros(2, height, width, dtype=torch.bool)
    mask[1, height - 16 :] = True
    return torch.randn(2, 3, height, width), mask


def detection_targets() -> list[dict[str, Tensor]]:
    """Two objects in the first image, one in the second."""
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.3], [0.3, 0.6, 0.4, 0.2]])
    return [{"labels": torch.tensor([1, 4]), "boxes": boxes}, {"labels": torch.tensor([2]), "boxes": boxes[:1]}]
