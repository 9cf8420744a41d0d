"""Windows of a feature map: one query per token, which attends within its window."""

import torch
from einops import rearrange
from torch import Tensor

from attnzoo.attention.base import is_self_attention
from attnzoo.attention.qkv import QkvAttention
from attnzoo.attention.window_partition import WindowPartition
from attnzoo.geometry import Layout, Pyramid, Queries


class GridWindows:
    """Windows of `window` x `window` pixels, shifted by `shift`, of every level; levels share the bias table.

    Cost (eq. 2 of Swin): 4SC² for projections and 2SNC for windows of N pixels. Padding of the map to whole windows is
    computed in addition.
    """

    def __init__(self, window: int, shift: int):
        self.window, self.shift = window, shift
        self.num_relative_positions = (2 * window - 1) ** 2

    def attend(self, attention: QkvAttention, table: Tensor | None, queries: Queries, memory: Pyramid) -> Tensor:
        """Attention of every query to the memory's tokens in its window: (B, S, C)."""
        attention.check_grid(queries, memory.layout)
        self_attention = is_self_attention(queries, memory)
        level_queries = () if self_attention else queries.with_pos_embed().split(memory.layout.tokens_per_level, 1)
        outputs, recorded = [], []
        for index in range(memory.layout.num_levels):
            level = memory.level(index)
            windows = WindowPartition(level.layout, self.window, self.shift)
            value = windows.partition(level.tokens)
            key = value if level.pos is None else value + windows.partition(level.pos)
            query = key if self_attention else windows.partition(level_queries[index])
            q, k, v = map(attention.split_heads, attention.project(query, key, value))
            # in maps without padding only the pixels that fill up windows have no key; `reverse_heads` drops them
            has_padding = level.layout.padding_mask is not None
            bias = self._bias(table)
            output, weights = attention.attend(q, k, v, bias, windows.mask, zero_if_all_masked=has_padding)
            outputs.append(windows.reverse_heads(output).flatten(2))
            if weights is not None:
                keys = windows.partition(level.layout.padded_centers)
                recorded.append((windows.reverse_heads(weights), windows.key_locations(keys)))
        if attention.recording:
            all_weights, all_locations = (torch.cat(x, 1) for x in zip(*recorded, strict=True))
            attention.record(weights=all_weights, locations=all_locations)
        return torch.cat(outputs, 1)

    def flops(self, dim: int, queries: int | Layout, memory: Layout) -> int:
        pairs = sum(h * w * min(self.window, h) * min(self.window, w) for h, w in memory.spatial_shapes)
        return 4 * memory.num_tokens * dim**2 + 2 * pairs * dim

    def extra_flops(self, dim: int, memory: Layout) -> int:
        """Multiply-accumulates that padding adds to `flops`: the output projection alone is without it."""
        windows = sum(-(-h // self.window) * -(-w // self.window) for h, w in memory.spatial_shapes)
        padded = windows * self.window**2
        computed = (3 * padded + memory.num_tokens) * dim**2 + 2 * padded * self.window**2 * dim
        return computed - self.flops(dim, memory, memory)

    def _bias(self, table: Tensor | None) -> Tensor | None:
        """The bias (M, N, N) between the pixels of a window: entry (Δy + w - 1)(2w - 1) + Δx + w - 1 of the table."""
        if table is None:
            return None
        coords = torch.arange(self.window, device=table.device)
        relative = coords[:, None] - coords + self.window - 1  # (query, key)
        index = relative[:, None, :, None] * (2 * self.window - 1) + relative[:, None, :]
        return rearrange(table[index.flatten()], "(q k) m -> m q k", q=self.window**2)
