"""Random predictions and targets, and their losses computed by transformers."""

import torch
from torch import Tensor

from attnzoo.models.detr.config import LossConfig
from attnzoo.models.detr.output import DetectorOutput

CLASSES = 5


def loss_config(classification: str) -> LossConfig:
    """Published loss weights of DETR (cross_entropy) or Deformable DETR (focal)."""
    weight = 1.0 if classification == "cross_entropy" else 2.0
    return LossConfig(classification=classification, class_weight=weight, match_class=weight)


def random_boxes(*shape: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Boxes (cx, cy, w, h) of all sizes and aspect ratios."""
    centers = torch.rand(*shape, 2, generator=generator, dtype=dtype)
    return torch.cat([centers, 0.02 + 0.6 * torch.rand(*shape, 2, generator=generator, dtype=dtype)], -1)


def random_targets(*counts: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    """One target per image, with the given numbers of objects."""
    g = torch.Generator().manual_seed(seed)
    return [
        {
            "labels": torch.randint(CLASSES, (n,), generator=g),
            "boxes": random_boxes(n, generator=g, dtype=dtype),
        }
        for n in counts
    ]


def random_output(
    classification: str,
    *,
    layers: int = 3,
    images: int = 3,
    queries: int = 8,
    tokens: int | None = None,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
) -> DetectorOutput:
    """Predictions that require gradients; `tokens` adds those of a two-stage encoder."""
    g = torch.Generator().manual_seed(seed)
    channels = CLASSES + (classification == "cross_entropy")

    def pair(*shape: int) -> tuple[Tensor, Tensor]:
        logits = 2 * torch.randn(*shape, channels, generator=g, dtype=dtype)
        return logits.requires_grad_(), random_boxes(*shape, generator=g, dtype=dtype).requires_grad_()

    encoder = pair(images, tokens) if tokens else (None, None)
    return DetectorOutput(*pair(layers, images, queries), *encoder)


def transformers_loss(
    classification: str, output: DetectorOutput, targets: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The losses computed by transformers 4.57.6, under the names of SetCriterion."""
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss
    from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

    config = loss_config(classification)
    weights = {"class_cost": config.match_class, "bbox_cost": config.match_l1, "giou_cost": config.match_giou}
    if classification == "focal":
        matcher = DeformableDetrHungarianMatcher(**weights)
        criterion = DeformableDetrImageLoss(matcher, CLASSES, focal_alpha=0.25, losses=["labels", "boxes"])
    else:
        matcher = HungarianMatcher(**weights)
        criterion = ImageLoss(matcher, CLASSES, eos_coef=0.1, losses=["labels", "boxes"])
        criterion.to(output.logits.dtype)
    layers = [{"logits": a, "pred_boxes": b} for a, b in zip(output.logits, output.boxes, strict=True)]
    labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
    losses = criterion({**layers[-1], "auxiliary_outputs": layers[:-1]}, labels)
    names = {"loss_ce": "class", "loss_bbox": "l1", "loss_giou": "giou"}
    return {name.replace(key, new): v for key, new in names.items() for name, v in losses.items() if key in name}
