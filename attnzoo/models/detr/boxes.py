"""Boxes as detectors of the DETR family use them: (cx, cy, w, h), normalised to the valid image."""

import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Corners (x1, y1, x2, y2) of boxes (..., 4)."""
    return box_convert(boxes, "cxcywh", "xyxy")


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Centres and sizes (cx, cy, w, h) of boxes (..., 4)."""
    return box_convert(boxes, "xyxy", "cxcywh")


def pairwise_giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) in [-1, 1] of boxes (..., N, 4) with others (..., M, 4): (..., N, M).

    Both are (cx, cy, w, h). Boxes without area are allowed; two of them at one point have no GIoU: NaN.
    """
    return generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(others))


def elementwise_giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised IoU of each box (..., 4) with the other one at the same place: (...)."""
    return pairwise_giou(boxes[..., None, :], others[..., None, :])[..., 0, 0]


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of values in [0, 1], finite also at 0 and 1 (Deformable DETR, util/misc.py)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
