"""Padding masks at the sizes of feature maps."""

import torch.nn.functional as F
from torch import Tensor


def resize_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """A boolean mask (B, H, W) resized to (B, height, width) by nearest-neighbour interpolation."""
    return F.interpolate(mask[:, None].float(), size=(height, width))[:, 0].bool()
