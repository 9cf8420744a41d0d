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
    (B, Q, M·D) in the dtype of `value`, computed in that of the locations.
    """
    batch, _, heads, head_dim = value.shape
    queries = sampling_locations.shape[1]
    output = sampling_locations.new_zeros(batch * heads, head_dim, queries)
    for maps, grid, weights in _levels(value, spatial_shapes, sampling_locations, attention_weights):
        output = output + (_sample(maps, grid) * weights).sum(-1)
    return output.reshape(batch, heads * head_dim, queries).transpose(1, 2).contiguous().to(value.dtype)


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
    grad = grad_output.to(sampling_locations.dtype).transpose(1, 2).reshape(batch * heads, head_dim, queries, 1)
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
    return by_value.contiguous().to(value.dtype), by_locations.contiguous(), by_weights.contiguous()


def ms_deform_attn_fused(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], references: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """Multi-scale deformable attention from references, raw offsets and attention logits.

    - `references`: (B, Q, L, 2) points or (B, Q, L, 4) boxes (cx, cy, w, h), [0, 1] over the map of each level
    - `offsets`: (B, Q, M, L, P, 2), in pixels from a point, in 1 / (2P) of a box from its centre
    - `logits`: (B, Q, M, L, P), one softmax over L·P

    The rest as for `ms_deform_attn` (Deformable DETR, arXiv:2010.04159, equation 3 and appendix A.4).
    """
    locations = sampling_locations(spatial_shapes, references, offsets)
    return ms_deform_attn(value, spatial_shapes, locations, _softmax(logits))


def ms_deform_attn_fused_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `ms_deform_attn_fused` by value, references, offsets and logits, given that of its output."""
    weights = _softmax(logits)
    locations = sampling_locations(spatial_shapes, references, offsets)
    by_value, by_locations, by_weights = ms_deform_attn_backward(grad_output, value, spatial_shapes, locations, weights)
    by_logits = weights * (by_weights - (weights * by_weights).sum((-1, -2), keepdim=True))
    by_center = by_locations.sum((2, 4))
    units = _units(spatial_shapes, references, offsets)
    by_offsets = _chain(by_locations, units)
    if references.shape[-1] == 2:
        return by_value, by_center, by_offsets, by_logits
    by_box = _chain(by_locations, offsets * (0.5 / offsets.shape[4])).sum((2, 4))
    return by_value, torch.cat([by_center, by_box], -1), by_offsets, by_logits


def sampling_locations(spatial_shapes: Sequence[tuple[int, int]], references: Tensor, offsets: Tensor) -> Tensor:
    """Where `ms_deform_attn_fused` samples: (B, Q, M, L, P, 2), x then y, [0, 1] over the map of each level."""
    units = _units(spatial_shapes, references, offsets)
    if references.shape[-1] == 2:
        return references[:, :, None, :, None] + offsets * units
    # Where a product is not finite its place is nowhere, and its factors have the gradient zero, not 0 · inf.
    nowhere = 0 * (offsets * units).detach()
    return references[:, :, None, :, None, :2] + _finite(offsets) * _finite(units) + nowhere


def _finite(x: Tensor) -> Tensor:
    return x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _units(spatial_shapes: Sequence[tuple[int, int]], references: Tensor, offsets: Tensor) -> Tensor:
    """What offsets are counted in, broadcast to their shape: a pixel of the level, or 1 / (2P) of a box."""
    if references.shape[-1] == 4:
        return references[:, :, None, :, None, 2:] * (0.5 / offsets.shape[4])
    # Filled, not copied from a list: a copy cannot be exported, holds no symbolic size, and waits for a GPU.
    pixels = [offsets.new_full((1,), 1 / side) for h, w in spatial_shapes for side in (w, h)]
    return torch.cat(pixels).view(-1, 1, 2)


def _chain(gradient: Tensor, factor: Tensor) -> Tensor:
    """Their product; 0 where a point lies outside, whatever its offset."""
    return torch.where(gradient == 0, 0, gradient * factor)


def _softmax(logits: Tensor) -> Tensor:
    return logits.flatten(-2).softmax(-1).view(logits.shape)


def _sample(maps: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _levels(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Per level: maps (B·M, D, h, w), grid (B·M, Q, P, 2) over [-1, 1], weights (B·M, 1, Q, P)."""
    batch, _, heads, head_dim = value.shape
    # One size of map beyond the border nothing is sampled, so NaN and huge numbers can be moved there.
    grid = 2 * locations.nan_to_num(nan=-1.0).clamp(-1.0, 2.0) - 1
    maps = value.to(locations.dtype).split([h * w for h, w in spatial_shapes], dim=1)
    for level, (h, w) in enumerate(spatial_shapes):
        yield (
            maps[level].permute(0, 2, 3, 1).reshape(batch * heads, head_dim, h, w),
            grid[:, :, :, level].transpose(1, 2).flatten(0, 1),
            weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None],
        )
