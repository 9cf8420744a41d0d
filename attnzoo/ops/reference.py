"""The operators in plain PyTorch: the fallback on every device, and the authority in float64."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention (Zhu et al., Deformable DETR, arXiv:2010.04159, equation 3).

    - `value`: (B, S, M, D), the levels concatenated, S = Σ h·w
    - `spatial_shapes`: (h, w) per level
    - `sampling_locations`: (B, Q, M, L, P, 2), x then y, [0, 1] over the map, pixel centres at (i + ½) / size
    - `attention_weights`: (B, Q, M, L, P)

    Bilinear samples, zero outside the map; a point with a NaN or infinite coordinate lies outside. Returns
    (B, Q, M·D).
    """
    batch, _, heads, head_dim = value.shape
    queries = sampling_locations.shape[1]
    output = value.new_zeros(batch * heads, head_dim, queries)
    for maps, grid, weights in _levels(value, spatial_shapes, sampling_locations, attention_weights):
        output = output + (_sample(maps, grid) * weights).sum(-1)
    return output.reshape(batch, heads * head_dim, queries).transpose(1, 2).contiguous()


def ms_deform_attn_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `ms_deform_attn` by value, locations and weights, given that of its output (B, Q, M·D)."""
    batch, _, heads, head_dim = value.shape
    queries = sampling_locations.shape[1]
    grad = grad_output.transpose(1, 2).reshape(batch * heads, head_dim, queries, 1)
    grad_maps, grad_grids, grad_weights = [], [], []
    for maps, grid, weights in _levels(value, spatial_shapes, sampling_locations, attention_weights):
        grad_map, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad * weights, maps, grid, 0, 0, False, [True, True]
        )
        grad_maps.append(grad_map.flatten(2))
        grad_grids.append(grad_grid)
        grad_weights.append((grad * _sample(maps, grid)).sum(1))
    by_value = torch.cat(grad_maps, -1).unflatten(0, (batch, heads)).permute(0, 3, 1, 2)
    by_locations = 2 * torch.stack(grad_grids, 2).unflatten(0, (batch, heads)).transpose(1, 2)
    by_weights = torch.stack(grad_weights, 2).unflatten(0, (batch, heads)).transpose(1, 2)
    return by_value.contiguous(), by_locations.contiguous(), by_weights.contiguous()


def _sample(maps: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _levels(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Per level: maps (B·M, D, h, w), grid (B·M, Q, P, 2) over [-1, 1], weights (B·M, 1, Q, P)."""
    batch, _, heads, head_dim = value.shape
    # One size of map beyond the border nothing is sampled, so NaN and huge numbers can be moved there.
    grid = 2 * locations.nan_to_num(nan=-1.0).clamp(-1.0, 2.0) - 1
    maps = value.split([h * w for h, w in spatial_shapes], dim=1)
    for level, (h, w) in enumerate(spatial_shapes):
        yield (
            maps[level].permute(0, 2, 3, 1).reshape(batch * heads, head_dim, h, w),
            grid[:, :, :, level].transpose(1, 2).flatten(0, 1),
            weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None],
        )
