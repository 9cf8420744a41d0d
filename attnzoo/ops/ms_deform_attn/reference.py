"""Multi-scale deformable attention in plain PyTorch: the fallback without a kernel, and the float64 reference."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from attnzoo.ops.sampling import Sampler, grid_sample


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    sampler: Sampler = grid_sample,
) -> Tensor:
    """Multi-scale deformable attention (Zhu et al., Deformable DETR, arXiv:2010.04159, equation 3).

    - `value`: (B, S, M, D), the levels concatenated, S = Σ h·w; or (B, S, 1, D), which all heads share
    - `spatial_shapes`: (h, w) per level
    - `sampling_locations`: (B, Q, M, L, P, 2), x then y, in [0, 1] over the map, pixel centres at (i + ½) / size
    - `attention_weights`: (B, Q, M, L, P)

    Samples are bilinear, and zero outside the map; NaN and infinite locations are outside. Returns (B, Q, M·D) in the
    dtype of `value`, computed in the dtype of the locations.
    """
    batch, queries, heads = sampling_locations.shape[:3]
    head_dim = value.shape[3]
    output = sampling_locations.new_zeros(batch * heads, head_dim, queries)
    for maps, grid, weights in _per_level(value, spatial_shapes, sampling_locations, attention_weights):
        output = output + (sampler(maps, grid) * weights).sum(-1)
    return output.reshape(batch, heads * head_dim, queries).transpose(1, 2).contiguous().to(value.dtype)


def ms_deform_attn_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward of `ms_deform_attn`: gradients of value, locations and weights, from that of the output (B, Q, M·D)."""
    batch, queries, heads = sampling_locations.shape[:3]
    head_dim = value.shape[3]
    grad = grad_output.to(sampling_locations.dtype).transpose(1, 2).reshape(batch * heads, head_dim, queries, 1)
    grad_maps, grad_grids, grad_level_weights = [], [], []
    for maps, grid, weights in _per_level(value, spatial_shapes, sampling_locations, attention_weights):
        grad_map, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad * weights, maps, grid, 0, 0, False, [True, True]
        )
        grad_maps.append(grad_map.flatten(2))
        grad_grids.append(grad_grid)
        grad_level_weights.append((grad * grid_sample(maps, grid)).sum(1))
    grad_value = torch.cat(grad_maps, -1).unflatten(0, (batch, heads)).permute(0, 3, 1, 2)
    if value.shape[2] != heads:
        grad_value = grad_value.sum(2, keepdim=True)
    grad_locations = 2 * torch.stack(grad_grids, 2).unflatten(0, (batch, heads)).transpose(1, 2)
    grad_weights = torch.stack(grad_level_weights, 2).unflatten(0, (batch, heads)).transpose(1, 2)
    grad_weights = grad_weights.contiguous().to(attention_weights.dtype)
    return grad_value.contiguous().to(value.dtype), grad_locations.contiguous(), grad_weights


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    sampler: Sampler = grid_sample,
) -> Tensor:
    """Multi-scale deformable attention from references, raw offsets and attention logits.

    - `references`: (B, Q, L, 2) points or (B, Q, L, 4) boxes (cx, cy, w, h), in [0, 1] over the map of each level
    - `offsets`: (B, Q, M, L, P, 2), from the point in pixels, or from the box centre in 1 / (2P) of the box size
    - `logits`: (B, Q, M, L, P), softmax over L·P

    Otherwise identical to `ms_deform_attn` (Deformable DETR, arXiv:2010.04159, equation 3 and appendix A.4).
    """
    locations = sampling_locations(spatial_shapes, references, offsets)
    return ms_deform_attn(value, spatial_shapes, locations, _softmax(logits.to(locations.dtype)), sampler)


def ms_deform_attn_fused_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Backward of `ms_deform_attn_fused`: gradients of value, references, offsets and logits."""
    weights = _softmax(logits.to(offsets.dtype))
    locations = sampling_locations(spatial_shapes, references, offsets)
    grad_value, grad_locations, grad_weights = ms_deform_attn_backward(
        grad_output, value, spatial_shapes, locations, weights
    )
    grad_logits = weights * (grad_weights - (weights * grad_weights).sum((-1, -2), keepdim=True))
    grad_references = grad_locations.sum((2, 4))
    grad_offsets = _mul_or_zero(grad_locations, _offset_scale(spatial_shapes, references, offsets))
    if references.shape[-1] == 4:
        grad_box_size = _mul_or_zero(grad_locations, offsets * (0.5 / offsets.shape[4])).sum((2, 4))
        grad_references = torch.cat([grad_references, grad_box_size], -1)
    return grad_value, grad_references, grad_offsets, grad_logits.to(logits.dtype)


def sampling_locations(spatial_shapes: Sequence[tuple[int, int]], references: Tensor, offsets: Tensor) -> Tensor:
    """Sampling locations of `ms_deform_attn_fused`: (B, Q, M, L, P, 2), x then y, in [0, 1] over each map."""
    scale = _offset_scale(spatial_shapes, references, offsets)
    if references.shape[-1] == 2:
        return references[:, :, None, :, None] + offsets * scale
    # A non-finite product gives a NaN location, which is outside; its factors get gradient 0 instead of 0 · inf.
    nan_if_nonfinite = 0 * (offsets * scale).detach()
    centers = references[:, :, None, :, None, :2]
    return centers + _nonfinite_to_zero(offsets) * _nonfinite_to_zero(scale) + nan_if_nonfinite


def _nonfinite_to_zero(x: Tensor) -> Tensor:
    return x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _offset_scale(spatial_shapes: Sequence[tuple[int, int]], references: Tensor, offsets: Tensor) -> Tensor:
    """Scale from offsets to normalised coordinates: one pixel of the level, or 1 / (2P) of the box size."""
    if references.shape[-1] == 4:
        return references[:, :, None, :, None, 2:] * (0.5 / offsets.shape[4])
    # new_full instead of torch.tensor(list): exportable, accepts symbolic sizes, no device synchronisation.
    pixels = [offsets.new_full((1,), 1 / size) for h, w in spatial_shapes for size in (w, h)]
    return torch.cat(pixels).view(-1, 1, 2)


def _mul_or_zero(gradient: Tensor, factor: Tensor) -> Tensor:
    """gradient · factor, but 0 where the gradient is 0, even for an infinite or NaN factor."""
    return torch.where(gradient == 0, 0, gradient * factor)


def _softmax(logits: Tensor) -> Tensor:
    return logits.flatten(-2).softmax(-1).view(logits.shape)


def _per_level(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Per level: maps (B·M, D, h, w), grid (B·M, Q, P, 2) in [-1, 1], weights (B·M, 1, Q, P)."""
    batch, _, heads = locations.shape[:3]
    value = value.expand(-1, -1, heads, -1)
    # Samples one map size outside are zero, so NaN and large values are clamped there.
    grid = 2 * locations.nan_to_num(nan=-1.0).clamp(-1.0, 2.0) - 1
    maps = value.to(locations.dtype).split([h * w for h, w in spatial_shapes], dim=1)
    for level, (h, w) in enumerate(spatial_shapes):
        yield (
            maps[level].permute(0, 2, 3, 1).reshape(batch * heads, value.shape[3], h, w),
            grid[:, :, :, level].transpose(1, 2).flatten(0, 1),
            weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None],
        )
