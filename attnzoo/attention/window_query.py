"""Windows around reference points: object queries attend to the pixels around their own."""

import torch
from einops import rearrange
from torch import Tensor

from attnzoo.attention.base import num_queries
from attnzoo.attention.qkv import QkvAttention
from attnzoo.geometry import Layout, Pyramid, Queries


class QueryWindows:
    """Windows of `window` x `window` pixels centred on the pixel of a query's reference point, clipped to the map.

    Queries attend to all `levels` jointly, with a bias table per level.
    Cost: 2(Q + S)C² for projections and 2QLNC for windows of N pixels.
    """

    def __init__(self, window: int, levels: int):
        self.window = window
        self.num_relative_positions = levels * window**2

    def attend(self, attention: QkvAttention, table: Tensor | None, queries: Queries, memory: Pyramid) -> Tensor:
        """Attention of every query to its windows: (B, Q, C)."""
        reference_points = attention.require_reference_points(queries)
        index, mask = self._window_index(reference_points, memory.layout)
        q, k, v = attention.project(queries.with_pos_embed(), memory.with_pos_embed(), memory.tokens)
        q = rearrange(q, "b q (m d) -> b q m 1 d", m=attention.slot.heads)
        k, v = (attention.split_heads(_gather_tokens(x, index)) for x in (k, v))
        bias = None if table is None else rearrange(table, "k m -> m 1 k")
        output, weights = attention.attend(q, k, v, bias, mask[:, :, None, None, :])
        if weights is not None:
            locations = _gather_tokens(memory.layout.padded_centers, index)
            attention.record(weights=weights.squeeze(3), locations=locations, reference_points=reference_points)
        return rearrange(output, "b q m 1 d -> b q (m d)")

    def flops(self, dim: int, queries: int | Layout, memory: Layout) -> int:
        q = num_queries(queries)
        return 2 * (q + memory.num_tokens) * dim**2 + 2 * q * memory.num_levels * self.window**2 * dim

    def extra_flops(self, dim: int, memory: Layout) -> int:
        """0: windows are not padded."""
        return 0

    def _window_index(self, reference_points: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Token indices (B, Q, L·w²) of each query's windows, and a mask (B, Q, L·w²) of the valid ones."""
        start, indices, masks = 0, [], []
        offsets = torch.arange(self.window, device=reference_points.device) - self.window // 2
        valid_sizes = layout.valid_sizes.long()
        for level, (h, w) in enumerate(layout.spatial_shapes):
            valid_size = valid_sizes[:, None, level]
            pixel = (reference_points[..., :2].float() * valid_size).floor().long()
            pixels = pixel.clamp(min=0).minimum(valid_size - 1)[..., None] + offsets  # (B, Q, 2, w)
            inside = (pixels >= 0) & (pixels < valid_size[..., None])
            x, y = pixels.clamp(min=0).minimum(valid_size[..., None] - 1).unbind(2)
            indices.append((start + y[..., :, None] * w + x[..., None, :]).flatten(2))
            masks.append((inside[:, :, 1, :, None] & inside[:, :, 0, None, :]).flatten(2))
            start += h * w
        index, mask = torch.cat(indices, 2), torch.cat(masks, 2)
        if layout.padding_mask is not None:  # only needed if an image is entirely padding
            mask = mask & ~_gather_tokens(layout.padding_mask[..., None], index)[..., 0]
        return index, mask


def _gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """x (B, S, C) at index (B, Q, K): (B, Q, K, C)."""
    batch, tokens, _ = x.shape
    first = torch.arange(batch, device=x.device)[:, None, None] * tokens
    return x.flatten(0, 1).index_select(0, (index + first).flatten()).unflatten(0, tuple(index.shape))
