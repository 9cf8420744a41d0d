"""Attention to sampled keys with a relative position bias, a direct implementation: the float64 reference.

It materialises the full attention matrix, unlike `attnzoo.ops.deform_kv_attn.operator`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attnzoo.ops.sampling import Sampler, grid_sample

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
    bias = table_bias(query_positions, zero_masked_keys(key_positions, key_padding), tables, key_counts)
    return attention_weights(query, key, bias, key_padding, scale) @ zero_masked_keys(value, key_padding)


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
    bias = mlp_bias(query_positions, zero_masked_keys(key_positions, key_padding), mlps, key_counts)
    return attention_weights(query, key, bias, key_padding, scale) @ zero_masked_keys(value, key_padding)


def attention_weights(
    query: Tensor, key: Tensor, bias: Tensor, key_padding: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Softmax over the keys of scaled dot products plus bias, (B, H, Nq, Nk); fully masked rows are zero."""
    weights = attention_scores(query, key, bias, key_padding, scale).softmax(-1)
    if key_padding is None:
        return weights
    return weights.masked_fill(key_padding[:, None, None], 0)  # NaN in fully masked rows


def attention_scores(
    query: Tensor, key: Tensor, bias: Tensor, key_padding: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Scaled dot products plus bias, (B, H, Nq, Nk); -inf at masked keys."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query @ zero_masked_keys(key, key_padding).mT * scale + bias
    return scores if key_padding is None else scores.masked_fill(key_padding[:, None, None], -torch.inf)


def table_bias(
    query_positions: Tensor,
    key_positions: Tensor,
    tables: Sequence[Tensor],
    key_counts: Sequence[int] | None = None,
    sampler: Sampler = grid_sample,
) -> Tensor:
    """The bias (B, H, Nq, Nk), sampled bilinearly from tables (H, Th, Tw), zero outside them."""
    biases = []
    for table, displacement in zip(tables, _displacements(query_positions, key_positions, key_counts), strict=True):
        batch, groups = displacement.shape[:2]
        maps = table.unflatten(0, (groups, -1)).expand(batch, -1, -1, -1, -1).flatten(0, 1)
        # new_full instead of new_tensor: exportable, accepts symbolic sizes.
        cell_size = torch.cat([displacement.new_full((1,), 2 / side) for side in (table.shape[2], table.shape[1])])
        grid = displacement * cell_size
        biases.append(grid_sample_zeros(maps, grid.flatten(0, 1), sampler).unflatten(0, (batch, groups)).flatten(1, 2))
    return torch.cat(biases, -1)


def mlp_bias(
    query_positions: Tensor,
    key_positions: Tensor,
    mlps: Sequence[Sequence[Layer]],
    key_counts: Sequence[int] | None = None,
) -> Tensor:
    """The bias (B, H, Nq, Nk), computed from log-spaced displacements by one MLP per level."""
    biases = []
    for layers, displacement in zip(mlps, _displacements(query_positions, key_positions, key_counts), strict=True):
        x = log_spaced(displacement)
        for index, (weight, bias) in enumerate(layers):
            x = F.linear(x if index == 0 else x.relu(), weight, bias)
        biases.append(x.permute(0, 1, 4, 2, 3).flatten(1, 2))
    return torch.cat(biases, -1)


def log_spaced(displacement: Tensor) -> Tensor:
    """sign(d) · ln(1 + |d|) (Liu et al., Swin Transformer V2, CVPR 2022, equation 4)."""
    return displacement.sign() * displacement.abs().log1p()


def grid_sample_zeros(maps: Tensor, grid: Tensor, sampler: Sampler = grid_sample) -> Tensor:
    """Sample maps (N, C, h, w) at a grid (N, q, k, 2) in [-1, 1]; value and gradient are zero outside, also at NaN."""
    # Samples beyond 1 + 1 / size ≤ 2 are zero, so NaN and large values are clamped to 3.
    return sampler(maps, grid.nan_to_num(nan=3.0).clamp(-3.0, 3.0))


def _displacements(query_positions: Tensor, key_positions: Tensor, key_counts: Sequence[int] | None) -> list[Tensor]:
    """Per level, from keys to queries: (B, G, Nq, nk, 2)."""
    counts = [key_positions.shape[2]] if key_counts is None else list(key_counts)
    return [
        query_positions[:, level, None, :, None] - keys[:, :, None]
        for level, keys in enumerate(key_positions.split(counts, 2))
    ]


def zero_masked_keys(x: Tensor, key_padding: Tensor | None) -> Tensor:
    """Keys, values or positions (B, H or G, Nk, …) with zeros at masked keys: 0 · NaN would still be NaN."""
    return x if key_padding is None else x.masked_fill(key_padding[:, None, :, None], 0)
