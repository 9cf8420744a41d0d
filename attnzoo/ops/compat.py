"""Compatibility: Deformable-DETR's `MSDeformAttnFunction`, and decompositions for ONNX export."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnzoo.ops.checks import check_dense, format_shape
from attnzoo.ops.deform_kv_attn import reference as kv_reference
from attnzoo.ops.ms_deform_attn import reference
from attnzoo.ops.ms_deform_attn.operator import ms_deform_attn
from attnzoo.ops.sampling import SAMPLERS, Sampler

INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class MSDeformAttnFunction:
    """`ms_deform_attn` with the name and arguments of Deformable-DETR's extension (models/ops).

    Replace `from .functions import MSDeformAttnFunction` by `from attnzoo.ops import MSDeformAttnFunction`.
    """

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int = 64,
    ) -> Tensor:
        """Call `ms_deform_attn`; returns (B, Q, M·D).

        - `value_spatial_shapes`: (L, 2) integers, h and w per level; a device synchronisation if on a GPU
        - `value_level_start_index`: (L,) integers, the first token of each level; levels must be consecutive
        - `im2col_step`: ignored; any batch size is supported

        Raises TypeError or ValueError if one of the first two is invalid, and the errors of `ms_deform_attn`.
        """
        shapes = level_shapes("value_spatial_shapes", value_spatial_shapes)
        check_level_starts("value_level_start_index", value_level_start_index, shapes)
        return ms_deform_attn(value, shapes, sampling_locations, attention_weights)


def level_shapes(name: str, tensor: Tensor) -> list[tuple[int, int]]:
    """(h, w) of each level, from a tensor (L, 2) of integers. Raises TypeError or ValueError naming the argument."""
    return [(h, w) for h, w in _int_list(name, tensor, "(L, 2)", (2,))]


def check_level_starts(name: str, tensor: Tensor, shapes: list[tuple[int, int]]) -> None:
    """Raise TypeError or ValueError unless `tensor` (L,) is the first token of each of consecutive levels."""
    starts = _int_list(name, tensor, "(L,)", ())
    expected = [sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))]
    if starts != expected:
        raise ValueError(f"{name}: expected {expected} for spatial shapes {shapes}, got {starts}")


def _int_list(name: str, tensor: Tensor, axes: str, level_shape: tuple[int, ...]) -> list[Any]:
    """Check an integer tensor (L, *level_shape) and return it as a list."""
    check_dense(name, tensor, f"a tensor {axes} of integers")
    if tensor.dtype not in INTEGER_DTYPES:
        raise TypeError(f"{name}: expected integers, got {tensor.dtype}")
    if tensor.dim() == 0 or tensor.shape[1:] != level_shape:
        raise ValueError(f"{name}: expected {axes}, got {format_shape(tensor)}")
    values: list[Any] = tensor.tolist()
    return values


def decompositions(sampling: str = "grid_sample") -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """The operators in plain PyTorch, for `torch.export.ExportedProgram.run_decompositions`.

    `sampling` is `grid_sample`, or `gather`, for runtimes in which GridSample is missing or wrong (TensorRT issues 4646
    and 4813). `attnzoo.interop.export_model` uses them. Raises ValueError for another form.
    """
    if sampling not in SAMPLERS:
        raise ValueError(f"sampling: expected one of {', '.join(SAMPLERS)}, got {sampling!r}")
    sampler = SAMPLERS[sampling]
    table_attention = partial(_deform_kv_attn, sampler)
    return {
        torch.ops.attnzoo.ms_deform_attn.default: _as_decomposition(reference.ms_deform_attn, sampler),
        torch.ops.attnzoo.ms_deform_attn_fused.default: _as_decomposition(reference.ms_deform_attn_fused, sampler),
        torch.ops.attnzoo.deform_kv_attn.default: table_attention,
        torch.ops.attnzoo.deform_kv_attn_in_blocks.default: table_attention,
        torch.ops.attnzoo.deform_kv_attn_mlp.default: _deform_kv_attn_mlp,
    }


def _as_decomposition(function: Callable[..., Tensor], sampler: Sampler) -> Callable[..., Tensor]:
    """`function` with the flat shapes (h0, w0, h1, w1, …) of the operator schemas."""

    def decomposition(value: Tensor, shapes: Sequence[int], *sampling: Tensor) -> Tensor:
        return function(value, _pairs(shapes), *sampling, sampler=sampler)

    return decomposition


def _deform_kv_attn(
    sampler: Sampler, query: Tensor, key: Tensor, value: Tensor, query_positions: Tensor, key_positions: Tensor,
    tables: Tensor, shapes: Sequence[int], key_counts: Sequence[int], key_padding: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    levels = tables.split([h * w for h, w in _pairs(shapes)], 1)
    maps = [level.unflatten(1, shape) for level, shape in zip(levels, _pairs(shapes), strict=True)]
    key_positions = kv_reference.zero_masked_keys(key_positions, key_padding)
    bias = kv_reference.table_bias(query_positions, key_positions, maps, key_counts, sampler)
    return _attend(query, key, value, bias, key_padding, scale)


def _deform_kv_attn_mlp(
    query: Tensor, key: Tensor, value: Tensor, query_positions: Tensor, key_positions: Tensor,
    layers: Sequence[Tensor], key_counts: Sequence[int], key_padding: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    depth = len(layers) // (2 * len(key_counts))
    mlps = [_pairs(layers)[start : start + depth] for start in range(0, depth * len(key_counts), depth)]
    key_positions = kv_reference.zero_masked_keys(key_positions, key_padding)
    bias = kv_reference.mlp_bias(query_positions, key_positions, mlps, key_counts)
    return _attend(query, key, value, bias, key_padding, scale)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, key_padding: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The output (B, H, Nq, D), and the logsumexp (B, H, Nq) of each row of scores, +inf for fully masked rows."""
    dtype = query.dtype  # may be half precision, unlike that of the bias
    query, key, value = (tokens.to(bias.dtype) for tokens in (query, key, value))
    weights = kv_reference.attention_weights(query, key, bias, key_padding, scale)
    logsumexp = kv_reference.attention_scores(query, key, bias, key_padding, scale).logsumexp(-1)
    output = weights @ kv_reference.zero_masked_keys(value, key_padding)
    return output.to(dtype), logsumexp.masked_fill(logsumexp == -torch.inf, torch.inf)


def _pairs(flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))
