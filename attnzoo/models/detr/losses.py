"""Set losses of DETR and Deformable DETR: classification, L1 and GIoU of matched boxes, for every layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from attnzoo.errors import unknown
from attnzoo.models.detr.boxes import elementwise_giou
from attnzoo.models.detr.config import LossConfig
from attnzoo.models.detr.matcher import Target, hungarian_match
from attnzoo.models.detr.output import DetectorOutput

CLASSIFICATION_LOSSES: tuple[str, ...] = get_args(LossConfig.__annotations__["classification"])


@dataclass(frozen=True, eq=False)
class LossResult:
    """`total` is the loss to minimise; `parts` are its unweighted scalar components, detached, for logging.

    They are named `class`, `l1` and `giou` for the last decoder layer, `class_0`, ... for earlier layers and
    `class_encoder`, ... for the proposals of a two-stage detector.
    """

    total: Tensor
    parts: dict[str, Tensor]


class SetCriterion:
    """`criterion(output, targets)`: the weighted sum of losses over decoder layers and encoder proposals.

    Each layer is matched independently, and all layers have equal weight. `num_classes` excludes "no object".

    `select` is HeadConfig.select. With "class_agnostic", as published, logit 0 of the encoder is objectness, so all of
    its labels are 0. With "max_class" the encoder learns the labels of the targets.

    Raises UserError for an unknown classification loss.
    """

    def __init__(self, config: LossConfig, num_classes: int, *, select: str = "class_agnostic"):
        if config.classification not in CLASSIFICATION_LOSSES:
            raise unknown("loss", config.classification, CLASSIFICATION_LOSSES, key="model.loss.classification")
        self.config = config
        self.num_classes = num_classes
        self.select = select

    def __call__(
        self, output: DetectorOutput, targets: Sequence[Target], num_boxes: Tensor | float | None = None
    ) -> LossResult:
        """The losses of a batch.

        Sums over boxes are divided by `num_boxes`. Its default is the mean number of target boxes per process, at least
        1; then gradients averaged over processes equal those of one process with all images.
        """
        if num_boxes is None:
            num_targets = sum(len(target["labels"]) for target in targets)
            num_boxes = _all_reduce_mean(num_targets, output.boxes.device).clamp(min=1)
        first_layer = 0 if self.config.auxiliary else output.logits.shape[0] - 1
        losses = self._layer_losses(output.logits[first_layer:], output.boxes[first_layer:], targets, num_boxes)
        suffixes = [*(f"_{layer}" for layer in range(len(losses["class"]) - 1)), ""]
        parts = {f"{name}{suffix}": values[i] for name, values in losses.items() for i, suffix in enumerate(suffixes)}
        total = self._weighted_sum(losses)

        if output.encoder_logits is not None and output.encoder_boxes is not None:
            if self.select == "class_agnostic":
                targets = [{**target, "labels": torch.zeros_like(target["labels"])} for target in targets]
            losses = self._layer_losses(output.encoder_logits[None], output.encoder_boxes[None], targets, num_boxes)
            parts |= {f"{name}_encoder": values[0] for name, values in losses.items()}
            total = total + self._weighted_sum(losses)
        return LossResult(total, {name: value.detach() for name, value in parts.items()})

    def _weighted_sum(self, losses: dict[str, Tensor]) -> Tensor:
        weights = {"class": self.config.class_weight, "l1": self.config.l1_weight, "giou": self.config.giou_weight}
        return torch.stack([weight * losses[name].sum() for name, weight in weights.items()]).sum()

    def _layer_losses(
        self, logits: Tensor, boxes: Tensor, targets: Sequence[Target], num_boxes: Tensor | float
    ) -> dict[str, Tensor]:
        """Unweighted losses (layers,) of logits (layers, B, Q, C) and boxes (layers, B, Q, 4)."""
        logits, boxes = _upcast_fp32(logits), _upcast_fp32(boxes)
        matching = hungarian_match(logits, boxes, targets, self.config)
        layer = torch.arange(len(logits), device=logits.device)[:, None]
        matched = (layer, matching.images, matching.queries)

        labels = torch.cat([target["labels"] for target in targets])[matching.targets]
        if self.config.classification == "focal":
            class_loss = self._focal(logits, matched, labels) / num_boxes
        else:
            class_loss = self._cross_entropy(logits, matched, labels)

        pred = boxes[matched]
        target_boxes = torch.cat([target["boxes"] for target in targets]).to(pred.dtype)[matching.targets]
        return {
            "class": class_loss,
            "l1": (pred - target_boxes).abs().sum((1, 2)) / num_boxes,
            "giou": (1 - elementwise_giou(pred, target_boxes)).sum(1) / num_boxes,
        }

    def _focal(self, logits: Tensor, matched: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """Focal loss (Lin et al. 2017), summed over queries and classes: (layers,)."""
        target = torch.zeros_like(logits)
        target[(*matched, labels)] = 1
        loss = sigmoid_focal_loss(logits, target, self.config.focal_alpha, self.config.focal_gamma)
        return loss.sum((1, 2, 3))

    def _cross_entropy(self, logits: Tensor, matched: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """Mean cross-entropy over queries, weighted by class with a lower weight for "no object": (layers,).

        The sum of weights is averaged over processes, as the number of boxes is. DETR normalises per process, which
        makes the loss depend on how images are distributed; with one process both are the same.
        """
        target = torch.full(logits.shape[:3], self.num_classes, device=logits.device)
        target[matched] = labels
        weight = logits.new_ones(self.num_classes + 1)
        weight[-1] = self.config.no_object_weight
        losses = F.cross_entropy(logits.flatten(0, 2), target.flatten(), weight, reduction="none")
        num_matched = labels.shape[1]
        num_unmatched = target[0].numel() - num_matched
        weights = _all_reduce_mean(num_matched + self.config.no_object_weight * num_unmatched, logits.device)
        return losses.unflatten(0, logits.shape[:3]).sum((1, 2)) / weights


def sum_of_loss_inputs(config: LossConfig, output: DetectorOutput) -> Tensor:
    """Sum of all predictions that enter the losses. Parameters that it does not depend on get no gradient."""
    first_layer = 0 if config.auxiliary else output.logits.shape[0] - 1
    tensors = (output.logits[first_layer:], output.boxes[first_layer:], output.encoder_logits, output.encoder_boxes)
    return torch.stack([tensor.sum() for tensor in tensors if tensor is not None]).sum()


def _upcast_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _all_reduce_mean(value: float, device: torch.device) -> Tensor:
    """The mean of a number over all processes, as a scalar tensor."""
    mean = torch.tensor(value, dtype=torch.float32, device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(mean)
        mean = mean / dist.get_world_size()
    return mean
