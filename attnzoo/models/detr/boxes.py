"""Box utilities. Unless stated otherwise, boxes are (cx, cy, w, h), normalised to the valid image."""

import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Corners (x1, y1, x2, y2) of boxes (..., 4)."""
    return box_convert(boxes, "cxcywh", "xyxy")


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Centres and sizes (cx, cy, w, h) of boxes (..., 4)."""
    return box_convert(boxes, "xyxy", "cxcywh")


def pairwise_giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) in [-1, 1] of boxes (..., N, 4) and (..., M, 4): (..., N, M).

    Boxes without area are allowed; the GIoU of two identical points is NaN.
    """
    return generalized_box_iou(cxcywh_to_xyxy(boxes1), cxcywh_to_xyxy(boxes2))


def elementwise_giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised IoU of corresponding boxes (..., 4): (...)."""
    return pairwise_giou(boxes1[..., None, :], boxes2[..., None, :])[..., 0, 0]


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of values in [0, 1], finite also at 0 and 1 (Deformable DETR, util/misc.py)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
