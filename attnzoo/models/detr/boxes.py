"""Box utilities. Unless stated otherwise, boxes are (cx, cy, w, h), normalised to the valid image."""

import torch
from torch import Tensor
from torchvision.ops import box_convert


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Corners (x1, y1, x2, y2) of boxes (..., 4)."""
    centers, sizes = boxes.split(2, -1)
    return torch.cat([centers - sizes / 2, centers + sizes / 2], -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Centres and sizes (cx, cy, w, h) of boxes (..., 4)."""
    return box_convert(boxes, "xyxy", "cxcywh")


def pairwise_giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised IoU of boxes (..., N, 4) and (..., M, 4): (..., N, M)."""
    return elementwise_giou(boxes1[..., :, None, :], boxes2[..., None, :, :])


def elementwise_giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) in [-1, 1] of corresponding boxes (..., 4), broadcast: (...).

    Boxes without area are allowed; the GIoU of two identical points is NaN.
    """
    top_left1, bottom_right1 = cxcywh_to_xyxy(boxes1).split(2, -1)
    top_left2, bottom_right2 = cxcywh_to_xyxy(boxes2).split(2, -1)
    intersection = _area((torch.min(bottom_right1, bottom_right2) - torch.max(top_left1, top_left2)).clamp(min=0))
    union = _area(bottom_right1 - top_left1) + _area(bottom_right2 - top_left2) - intersection
    hull = _area(torch.max(bottom_right1, bottom_right2) - torch.min(top_left1, top_left2))
    return intersection / union - (hull - union) / hull


def _area(sizes: Tensor) -> Tensor:
    """w · h of sizes (..., 2)."""
    width, height = sizes.unbind(-1)
    return width * height


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of values in [0, 1], finite also at 0 and 1 (Deformable DETR, util/misc.py)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
