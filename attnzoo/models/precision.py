"""Models of half precision, as after .half() and .bfloat16()."""

import torch
from torch import Tensor


def match_precision(images: Tensor, weight: Tensor) -> Tensor:
    """Images in float32 in the half precision of `weight`, if it has one; others as they are."""
    half = weight.dtype in (torch.float16, torch.bfloat16)
    return images.to(weight.dtype) if half and images.dtype == torch.float32 else images
