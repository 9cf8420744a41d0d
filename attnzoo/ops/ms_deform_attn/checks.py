"""Argument checks of multi-scale deformable attention.

They raise TypeError for a wrong type or dtype and ValueError for a wrong shape or device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from attnzoo.ops.checks import check_compatible, check_sizes, check_tensor, format_shape


def check_ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    _check_sampling(value, spatial_shapes, sampling_locations=sampling_locations, attention_weights=attention_weights)


def check_ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> None:
    _check_sampling(value, spatial_shapes, offsets=offsets, logits=logits)
    check_compatible("references", references, "(B, Q, L, 2 or 4)", "value", value)
    if references.shape[-1] not in (2, 4):
        raise ValueError(f"references: expected points (x, y) or boxes (cx, cy, w, h), got {format_shape(references)}")
    check_sizes("references", references, {"B": value.shape[0], "Q": offsets.shape[1], "L": len(spatial_shapes)})


def _check_sampling(value: Tensor, spatial_shapes: Sequence[tuple[int, int]], **sampling: Tensor) -> None:
    """Check value, shapes, and two sampling tensors: locations or offsets, then weights or logits."""
    (locations_name, locations), (weights_name, weights) = sampling.items()
    check_tensor("value", value, "(B, S, M, D)")
    check_compatible(locations_name, locations, "(B, Q, M, L, P, 2)", "value", value)
    check_compatible(weights_name, weights, "(B, Q, M, L, P)", "value", value)
    tokens = _count_tokens(spatial_shapes)

    batch, num_tokens, heads, head_dim = value.shape
    if heads < 1 or head_dim < 1:
        raise ValueError(f"value: M and D must be at least 1, got {format_shape(value)}")
    if num_tokens != tokens:
        raise ValueError(f"value: has S = {num_tokens} tokens, but spatial_shapes have {tokens}")

    queries, points = locations.shape[1], locations.shape[4]
    if heads == 1:  # shared by all heads
        heads = max(1, locations.shape[2])
    if points < 1:
        raise ValueError(f"{locations_name}: P must be at least 1, got {format_shape(locations)}")
    sizes = {"B": batch, "Q": queries, "M": heads, "L": len(spatial_shapes), "P": points}
    check_sizes(locations_name, locations, {**sizes, "(x, y)": 2})
    check_sizes(weights_name, weights, sizes)


def _count_tokens(shapes: Sequence[tuple[int, int]]) -> int:
    """Check the level shapes and return their number of tokens."""
    if isinstance(shapes, Tensor) or not isinstance(shapes, Sequence):
        raise TypeError(f"spatial_shapes: expected ((h, w), …) of Python ints, got {type(shapes).__name__}")
    if not shapes:
        raise ValueError("spatial_shapes: expected at least one level")
    tokens = 0
    for shape in shapes:
        if not isinstance(shape, Sequence) or len(shape) != 2:
            raise TypeError(f"spatial_shapes: expected (h, w) per level, got {shape!r}")
        height, width = shape
        if not isinstance(height, (int, torch.SymInt)) or not isinstance(width, (int, torch.SymInt)):
            raise TypeError(f"spatial_shapes: expected Python ints, got {shape!r}")
        if height < 1 or width < 1:
            raise ValueError(f"spatial_shapes: h and w must be at least 1, got {shape!r}")
        tokens += height * width
    return tokens
