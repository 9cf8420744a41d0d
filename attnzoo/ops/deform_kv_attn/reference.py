"""Attention to displaced keys with a relative position bias, as the formula says: the authority in float64.

It holds the scores of all pairs of queries and keys; `attnzoo.ops.deform_kv_attn.operator` does not.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Layer = tuple[Tensor, Tensor]  # weight (out, in) and bias (out,)


def deform_kv_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    tables: Sequence[Tensor],
    *,
    key_counts: Sequence[int] | None = None,
    key_padding: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """`attnzoo.ops.deform_kv_attn`, with the same arguments and result."""
    bias = table_bias(query_positions, visible(key_positions, key_padding), tables, key_counts)
    return attention_weights(query, key, bias, key_padding, scale) @ visible(value, key_padding)


def deform_kv_attn_mlp(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    mlps: Sequence[Sequence[Layer]],
    *,
    key_counts: Sequence[int] | None = None,
    key_padding: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """`attnzoo.ops.deform_kv_attn_mlp`, with the same arguments and result."""
    bias = mlp_bias(query_positions, visible(key_positions, key_padding), mlps, key_counts)
    return attention_weights(query, key, bias, key_padding, scale) @ visible(value, key_padding)


def attention_weights(
    query: Tensor, key: Tensor, bias: Tensor, key_padding: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Softmax over the keys of scaled products plus bias, (B, H, Nq, Nk); rows without any key are zero."""
    scores = query @ visible(key, key_padding).mT * (query.shape[-1] ** -0.5 if scale is None else scale) + bias
    if key_padding is None:
        return scores.softmax(-1)
    hidden = key_padding[:, None, None]
    return scores.masked_fill(hidden, -torch.inf).softmax(-1).masked_fill(hidden, 0)  # 0 / 0 where all are hidden


def table_bias(
    query_positions: Tensor, key_positions: Tensor, tables: Sequence[Tensor], key_counts: Sequence[int] | None = None
) -> Tensor:
    """The bias (B, H, Nq, Nk), read bilinearly from tables (H, Th, Tw), zero beyond them."""
    biases = []
    for level, (table, displacement) in enumerate(
        zip(tables, _displacements(query_positions, key_positions, key_counts), strict=True)
    ):
        batch, groups = displacement.shape[:2]
        maps = table.unflatten(0, (groups, -1)).expand(batch, -1, -1, -1, -1).flatten(0, 1)
        grid = displacement * displacement.new_tensor([2 / tables[level].shape[2], 2 / tables[level].shape[1]])
        biases.append(interpolate(maps, grid.flatten(0, 1)).unflatten(0, (batch, groups)).flatten(1, 2))
    return torch.cat(biases, -1)


def mlp_bias(
    query_positions: Tensor,
    key_positions: Tensor,
    mlps: Sequence[Sequence[Layer]],
    key_counts: Sequence[int] | None = None,
) -> Tensor:
    """The bias (B, H, Nq, Nk), computed from log-spaced displacements by one perceptron per level."""
    biases = []
    for layers, displacement in zip(mlps, _displacements(query_positions, key_positions, key_counts), strict=True):
        hidden = log_spaced(displacement)
        for index, (weight, bias) in enumerate(layers):
            hidden = F.linear(hidden if index == 0 else hidden.relu(), weight, bias)
        biases.append(hidden.permute(0, 1, 4, 2, 3).flatten(1, 2))
    return torch.cat(biases, -1)


def log_spaced(displacement: Tensor) -> Tensor:
    """sign(d) · ln(1 + |d|) (Liu et al., Swin Transformer V2, CVPR 2022, equation 4)."""
    return displacement.sign() * displacement.abs().log1p()


def interpolate(maps: Tensor, grid: Tensor) -> Tensor:
    """Maps (N, C, h, w) at a grid (N, q, k, 2) over which a map spans [-1, 1]; zero, slopes included, elsewhere."""
    # Nothing is sampled beyond 1 + 1 / size ≤ 2, so NaN and huge numbers can be moved there.
    grid = grid.nan_to_num(nan=3.0).clamp(-3.0, 3.0)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _displacements(query_positions: Tensor, key_positions: Tensor, key_counts: Sequence[int] | None) -> list[Tensor]:
    """Per level, from keys to queries: (B, G, Nq, nk, 2)."""
    counts = [key_positions.shape[2]] if key_counts is None else list(key_counts)
    return [
        query_positions[:, level, None, :, None] - keys[:, :, None]
        for level, keys in enumerate(key_positions.split(counts, 2))
    ]


def visible(of_keys: Tensor, key_padding: Tensor | None) -> Tensor:
    """Keys, values or positions (B, H or G, Nk, …) with zeros at padding: a zero weight would not silence a NaN."""
    return of_keys if key_padding is None else of_keys.masked_fill(key_padding[:, None, :, None], 0)
