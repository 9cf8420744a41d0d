"""The set losses of DETR and Deformable DETR: classes, L1 and GIoU of matched boxes, on every layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from attnzoo.errors import unknown
from attnzoo.models.detr.boxes import giou
from attnzoo.models.detr.config import LossConfig
from attnzoo.models.detr.matcher import Objects, match
from attnzoo.models.detr.output import DetectorOutput

CLASSIFICATIONS: tuple[str, ...] = get_args(LossConfig.__annotations__["classification"])


@dataclass(frozen=True, eq=False)
class LossResult:
    """`total` is what to minimise; `parts` are its unweighted scalars, detached, for the log.

    Names are `class`, `l1` and `giou` for the last decoder layer, `class_0`, ... for the layers before it
    and `class_encoder`, ... for the proposals of a two-stage detector.
    """

    total: Tensor
    parts: dict[str, Tensor]


class DetectionLoss:
    """`loss(output, targets)`: the weighted sum over decoder layers and encoder proposals.

    Each layer is matched anew and weighted alike. `num_classes` does not count "no object".

    `select` says how a two-stage detector picks its proposals (HeadConfig.select). "first" is the published
    way: the encoder's logit 0 tells object from background, so all its labels are 0. With "best" the
    proposals are picked by their best class, so the encoder learns the real labels.

    Raises UserError for an unknown classification.
    """

    def __init__(self, config: LossConfig, num_classes: int, *, select: str = "first"):
        if config.classification not in CLASSIFICATIONS:
            raise unknown("loss", config.classification, CLASSIFICATIONS, key="model.loss.classification")
        self.config = config
        self.num_classes = num_classes
        self.select = select

    def __call__(
        self, output: DetectorOutput, targets: Sequence[Objects], num_boxes: Tensor | float | None = None
    ) -> LossResult:
        """The losses of a batch.

        Sums over boxes are divided by `num_boxes`: by default the mean number of objects per process, at
        least 1, so that averaging gradients over processes gives those of one process with all images.
        """
        if num_boxes is None:
            objects = sum(len(target["labels"]) for target in targets)
            num_boxes = _mean_over_processes(objects, output.boxes).clamp(min=1)
        first = 0 if self.config.auxiliary else output.logits.shape[0] - 1
        losses = self._layers(output.logits[first:], output.boxes[first:], targets, num_boxes)
        names = [*(f"_{layer}" for layer in range(len(losses["class"]) - 1)), ""]
        parts = {f"{kind}{name}": values[i] for kind, values in losses.items() for i, name in enumerate(names)}
        total = self._weighted(losses)

        if output.encoder_logits is not None and output.encoder_boxes is not None:
            if self.select == "first":
                targets = [{**target, "labels": torch.zeros_like(target["labels"])} for target in targets]
            losses = self._layers(output.encoder_logits[None], output.encoder_boxes[None], targets, num_boxes)
            parts |= {f"{kind}_encoder": values[0] for kind, values in losses.items()}
            total = total + self._weighted(losses)
        return LossResult(total, {name: value.detach() for name, value in parts.items()})

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor:
        weights = {"class": self.config.class_weight, "l1": self.config.l1_weight, "giou": self.config.giou_weight}
        return torch.stack([weight * losses[kind].sum() for kind, weight in weights.items()]).sum()

    def _layers(
        self, logits: Tensor, boxes: Tensor, targets: Sequence[Objects], num_boxes: Tensor | float
    ) -> dict[str, Tensor]:
        """Unweighted losses (layers,) of logits (layers, B, Q, C) and boxes (layers, B, Q, 4)."""
        logits, boxes = _at_least_fp32(logits), _at_least_fp32(boxes)
        matching = match(logits, boxes, targets, self.config)
        layer = torch.arange(len(logits), device=logits.device)[:, None]
        where = (layer, matching.images, matching.queries)

        labels = torch.cat([target["labels"] for target in targets])[matching.targets]
        if self.config.classification == "focal":
            classes = self._focal(logits, where, labels) / num_boxes
        else:
            classes = self._cross_entropy(logits, where, labels)

        found = boxes[where]
        wanted = torch.cat([target["boxes"] for target in targets]).to(found.dtype)[matching.targets]
        return {
            "class": classes,
            "l1": (found - wanted).abs().sum((1, 2)) / num_boxes,
            "giou": (1 - giou(found, wanted)).sum(1) / num_boxes,
        }

    def _focal(self, logits: Tensor, where: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """Focal loss (Lin et al. 2017), summed over queries and classes: (layers,)."""
        wanted = torch.zeros_like(logits)
        wanted[(*where, labels)] = 1
        loss = sigmoid_focal_loss(logits, wanted, self.config.focal_alpha, self.config.focal_gamma)
        return loss.sum((1, 2, 3))

    def _cross_entropy(self, logits: Tensor, where: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """Cross-entropy with "no object" weighted down, a weighted mean over queries: (layers,).

        The sum of weights is averaged over processes as the number of boxes is. DETR takes each process's
        own, which makes the result depend on how images are spread; with one process they are the same.
        """
        wanted = torch.full(logits.shape[:3], self.num_classes, device=logits.device)
        wanted[where] = labels
        weight = logits.new_ones(self.num_classes + 1)
        weight[-1] = self.config.no_object_weight
        losses = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), weight, reduction="none")
        matched = labels.shape[1]
        empty = wanted[0].numel() - matched
        weights = _mean_over_processes(matched + self.config.no_object_weight * empty, logits)
        return losses.unflatten(0, logits.shape[:3]).sum((1, 2)) / weights


def seen(config: LossConfig, output: DetectorOutput) -> Tensor:
    """The sum of all that the losses look at, whatever the targets: a parameter that it depends on trains."""
    first = 0 if config.auxiliary else output.logits.shape[0] - 1
    tensors = (output.logits[first:], output.boxes[first:], output.encoder_logits, output.encoder_boxes)
    return torch.stack([tensor.sum() for tensor in tensors if tensor is not None]).sum()


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mean_over_processes(value: float, like: Tensor) -> Tensor:
    """The mean of a number over the processes of a run, as a scalar on the device of `like`."""
    mean = torch.tensor(value, dtype=torch.float32, device=like.device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(mean)
        mean = mean / dist.get_world_size()
    return mean
