"""Attentions and memories for tests against loops in float64."""

from collections.abc import Sequence
from typing import Any

import torch

from attnzoo.attention import Attention
from attnzoo.geometry import Layout, Pyramid


def perturbed(attention: Attention, scale: float) -> Any:
    """The attention in float64, with noise in its parameters: some are zero at first."""
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)
    return attention.double().eval()


def padded_memory(maps: Sequence[tuple[int, int]], dim: int) -> Pyramid:
    """Two images in float64 on two maps; the second fills 3 x 4 and 2 x 1 pixels of them."""
    masks = [torch.zeros(2, h, w, dtype=torch.bool) for h, w in maps]
    masks[0][1, 3:] = masks[0][1, :, 4:] = masks[1][1, 2:] = masks[1][1, :, 1:] = True
    layout = Layout.from_masks(masks)
    tokens, pos = torch.randn(2, 2, layout.num_tokens, dim, dtype=torch.float64)
    return Pyramid(tokens, layout, pos)
