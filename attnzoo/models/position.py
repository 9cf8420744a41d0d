"""Sine position embeddings (Vaswani et al. 2017; in two dimensions Carion et al. 2020)."""

import math
from typing import Literal

import torch
from torch import Tensor


def sine_embedding(x: Tensor, num_feats: int) -> Tensor:
    """Interleaved sines and cosines of x (...) in [0, 1] at `num_feats` / 2 frequencies: (..., num_feats)."""
    index = torch.arange(num_feats, device=x.device)
    wavelengths = 10000 ** (2 * (index // 2) / num_feats)
    angles = x[..., None] * (2 * math.pi) / wavelengths
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(-2)


def sine_position_embedding(mask: Tensor, dim: int, convention: Literal["deformable_detr", "detr"]) -> Tensor:
    """Position embedding (B, h, w, dim) of a map with padding mask (B, h, w): dim/2 features of y, then of x.

    Valid pixel i, counted from 0, is at i + ½ in Deformable DETR and at i + 1 in DETR, divided by the number of valid
    pixels.
    """
    valid = (~mask).float()
    shift = 0.5 if convention == "deformable_detr" else 0.0
    y, x = valid.cumsum(1), valid.cumsum(2)
    y = (y - shift) / (y[:, -1:, :] + 1e-6)
    x = (x - shift) / (x[:, :, -1:] + 1e-6)
    return sine_embedding(torch.stack([y, x], -1), dim // 2).flatten(-2)
