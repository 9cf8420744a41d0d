"""Detectors of this package and of transformers, with the same weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnzoo import interop, models
from attnzoo.bench.models.base import BenchModel, BenchTask, Outputs
from attnzoo.bench.operators.base import OURS
from attnzoo.environment import version
from attnzoo.models.detr.detector import Detector
from attnzoo.models.detr.losses import SetCriterion
from attnzoo.models.detr.matcher import Target

TRANSFORMERS = "transformers"
INSTALL = "pip install transformers==4.57.6"
CLASSES = 91
NUM_OBJECTS = 8  # per training image
MODELS: dict[str, dict[str, Any]] = {
    "detr_r50": {"auxiliary_loss": False},  # with them, transformers feeds normalised states to the next layer
    "deformable_detr_r50": {"auxiliary_loss": True, "class_cost": 1},
    "deformable_detr_r50_refine": {"auxiliary_loss": True, "class_cost": 1, "with_box_refine": True},
}
"""Presets, with the options of transformers for the same model and the same losses."""


@dataclass(frozen=True)
class Size:
    """Size of the transformer, and depths and widths of the backbone's stages."""

    dim: int
    heads: int
    layers: int
    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]


FULL_SIZE = Size(dim=256, heads=8, layers=6, depths=(3, 4, 6, 3), widths=(256, 512, 1024, 2048))
TINY = Size(dim=64, heads=4, layers=2, depths=(1, 1, 1, 1), widths=(16, 32, 64, 128))


class AttnzooDetector(BenchModel):
    def __init__(self, model: Detector):
        self.model = model
        self._loss = SetCriterion(model.config.loss, model.num_classes)

    def predict(self, images: Tensor) -> Outputs:
        output = self.model(images)
        return {"logits": output.logits[-1], "boxes": output.boxes[-1]}

    def loss(self, images: Tensor, targets: Sequence[Target]) -> Tensor:
        return self._loss(self.model(images), targets).total


class TransformersDetector(BenchModel):
    """transformers 4.57: images as `pixel_values` without a mask, targets as `class_labels` and `boxes`."""

    def __init__(self, model: nn.Module):
        self.model = model

    def predict(self, images: Tensor) -> Outputs:
        output = self.model(images)
        return {"logits": output.logits, "boxes": output.pred_boxes}

    def loss(self, images: Tensor, targets: Sequence[Target]) -> Tensor:
        labels = [{"class_labels": target["labels"], "boxes": target["boxes"]} for target in targets]
        loss: Tensor = self.model(images, labels=labels).loss
        return loss


def build_models(name: str, tiny: bool, device: torch.device) -> tuple[dict[str, BenchModel], str | None]:
    """Both detectors in float32 without dropout; only ours, with the reason, if transformers 4 is not installed."""
    size = TINY if tiny else FULL_SIZE
    ours = _build_attnzoo(name, size)
    installed = version(TRANSFORMERS)
    if installed is None or installed.split(".")[0] != "4":
        reason = "is missing" if installed is None else f"{installed} names its tensors differently"
        return {OURS: AttnzooDetector(ours.to(device))}, f"transformers {reason}: {INSTALL}"
    theirs = _build_transformers(name, size)
    _perturb(theirs)
    _freeze_as_published(theirs)
    interop.load(ours, theirs.state_dict())
    return {OURS: AttnzooDetector(ours.to(device)), TRANSFORMERS: TransformersDetector(theirs.to(device))}, None


def _build_attnzoo(name: str, size: Size) -> Detector:
    dense = {"attention": {"dropout": 0.0}} if name.startswith("detr") else {}
    model = models.create(
        name,
        num_classes=CLASSES,
        dim=size.dim,
        heads=size.heads,
        dropout=0.0,
        backbone={"options": {"layers": list(size.depths), "channels": [width // 4 for width in size.widths]}},
        encoder={"layers": size.layers, **dense},
        decoder={"layers": size.layers, **dense},
        loss={"class_weight": 1.0, "match_class": 1.0, "auxiliary": MODELS[name]["auxiliary_loss"]},
    )
    assert isinstance(model, Detector)
    return model


def _build_transformers(name: str, size: Size) -> nn.Module:
    """The transformers model of the same size, randomly initialised."""
    from transformers import (
        DeformableDetrConfig,
        DeformableDetrForObjectDetection,
        DetrConfig,
        DetrForObjectDetection,
        ResNetConfig,
    )

    dense = name.startswith("detr")
    config = _build_attnzoo(name, size).config
    stages = ["stage4"] if dense else ["stage2", "stage3", "stage4"]
    options: dict[str, Any] = {
        "backbone_config": ResNetConfig(
            embedding_size=64, hidden_sizes=list(size.widths), depths=list(size.depths), out_features=stages
        ),
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
        "num_labels": CLASSES,
        "num_queries": config.queries,
        "d_model": size.dim,
        "encoder_layers": size.layers,
        "decoder_layers": size.layers,
        "encoder_attention_heads": size.heads,
        "decoder_attention_heads": size.heads,
        "encoder_ffn_dim": config.ffn,
        "decoder_ffn_dim": config.ffn,
        "dropout": 0.0,
        **MODELS[name],
    }
    torch.manual_seed(0)
    if dense:
        return DetrForObjectDetection(DetrConfig(**options))
    return DeformableDetrForObjectDetection(DeformableDetrConfig(**options))


def _freeze_as_published(model: nn.Module) -> None:
    """Freeze the stem and the first stage only: a bug of transformers 4.57 freezes every stage of its own ResNet."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("backbone" not in name or any(f"stages.{stage}." in name for stage in (1, 2, 3)))


def _perturb(model: nn.Module) -> None:
    """Perturb weights as if trained: no parameter stays zero, and residual branches stay bounded."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "backbone" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=g), alpha=0.02)
        for name, buffer in model.named_buffers():
            if name.endswith("layer.2.normalization.weight"):
                buffer.fill_(0.2)


def _make_targets(batch: int, device: torch.device) -> list[Target]:
    g = torch.Generator().manual_seed(1)
    return [
        {
            "labels": torch.randint(20, (NUM_OBJECTS,), generator=g).to(device),
            "boxes": (0.2 + 0.6 * torch.rand(NUM_OBJECTS, 4, generator=g)).to(device),
        }
        for _ in range(batch)
    ]


DETECTION = BenchTask(tuple(MODELS), build_models, _make_targets, forward=(1, 800, 1066), training=(2, 256, 256))
