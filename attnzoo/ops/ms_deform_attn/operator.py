"""Multi-scale deformable attention as a PyTorch operator: Python API, schemas, autograd, fallback, FLOPs."""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from attnzoo.ops import autocast, forward_ad, library, vmap
from attnzoo.ops.checks import HALF_DTYPES
from attnzoo.ops.eager import EagerOperator
from attnzoo.ops.ms_deform_attn import reference
from attnzoo.ops.ms_deform_attn.checks import check_ms_deform_attn, check_ms_deform_attn_fused


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention (Zhu et al., Deformable DETR, arXiv:2010.04159, equation 3).

    - `value`: (B, S, M, D), the levels concatenated, S = Σ h·w; or (B, S, 1, D), which all heads share
    - `spatial_shapes`: (h, w) per level, Python ints
    - `sampling_locations`: (B, Q, M, L, P, 2), x then y, in [0, 1] over the map, pixel centres at (i + ½) / size
    - `attention_weights`: (B, Q, M, L, P)

    Returns (B, Q, M·D) in the dtype of `value`.

    Samples are bilinear, and zero outside the map. A NaN or infinite location is outside: it contributes zero and gets
    zero gradients. B or Q may be 0.

    With a half-precision value, locations and weights may be float16, bfloat16 or float32, and the computation is in
    float32. Under autocast, `value` is cast to the autocast dtype.

    Raises TypeError or ValueError for invalid arguments.
    """
    value = autocast.cast(value)
    check_ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)
    flat_shapes = [size for shape in spatial_shapes for size in shape]
    if value.dtype in HALF_DTYPES:
        sampling_locations, attention_weights = autocast.widen_sampling(value, sampling_locations, attention_weights)
    value = _expand_heads(value, attention_weights.shape[2])
    return _eager(value, flat_shapes, sampling_locations, attention_weights)


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """Fused multi-scale deformable attention: the kernel computes sampling locations and softmax.

    - `value`: (B, S, M, D), the levels concatenated, S = Σ h·w; or (B, S, 1, D), which all heads share
    - `spatial_shapes`: (h, w) per level, Python ints
    - `references`: (B, Q, L, 2) points or (B, Q, L, 4) boxes (cx, cy, w, h), in [0, 1] over the map of each level
    - `offsets`: (B, Q, M, L, P, 2), x then y, from the point in pixels of the level, or from the box centre in
      1 / (2P) of the box size (Deformable DETR, arXiv:2010.04159, appendix A.4)
    - `logits`: (B, Q, M, L, P), unnormalised attention weights; softmax over L·P

    Otherwise identical to `ms_deform_attn`.
    """
    value = autocast.cast(value)
    check_ms_deform_attn_fused(value, spatial_shapes, references, offsets, logits)
    flat_shapes = [size for shape in spatial_shapes for size in shape]
    if value.dtype in HALF_DTYPES:
        references, offsets, logits = autocast.widen_sampling(value, references, offsets, logits)
    value = _expand_heads(value, logits.shape[2])
    return _eager_fused(value, flat_shapes, references, offsets, logits)


def _expand_heads(value: Tensor, heads: int) -> Tensor:
    """A shared value (B, S, 1, D) expanded to (B, S, M, D), unless the kernel sums its gradient over the heads.

    The CPU kernels do, in float32 and float64 and for whole vectors of channels.
    """
    if value.shape[2] == heads:
        return value
    if value.device.type == "cpu" and value.dtype not in HALF_DTYPES and value.shape[3] % 4 == 0:
        return value
    return value.expand(-1, -1, heads, -1)


_lib = forward_ad.ReverseModeLibrary("attnzoo", "DEF")
_lib.define(
    "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights)"
    " -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_lib.define(
    "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations,"
    " Tensor attention_weights, bool deterministic) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_lib.define(
    "ms_deform_attn_fused(Tensor value, SymInt[] spatial_shapes, Tensor references, Tensor offsets, Tensor logits)"
    " -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_lib.define(
    "ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor references,"
    " Tensor offsets, Tensor logits, bool deterministic) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_lib.define("release_workspace() -> ()")
library.load()


def _to_pairs(flat_shapes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat_shapes[::2], flat_shapes[1::2], strict=True))


@cache
def _warn_slow_fallback(device_type: str) -> None:
    reason = library.backends().get(device_type, "no kernel for this device")
    warnings.warn(f"attnzoo: ms_deform_attn on {device_type} runs the slow reference: {reason}", stacklevel=2)


# Fallback for devices without a compiled kernel.
@torch.library.impl(_lib, "ms_deform_attn", "CompositeExplicitAutograd")
def _forward_reference(value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    _warn_slow_fallback(value.device.type)
    return reference.ms_deform_attn(value, _to_pairs(shapes), locations, weights)


@torch.library.impl(_lib, "ms_deform_attn_backward", "CompositeExplicitAutograd")
def _backward_reference(
    grad_output: Tensor, value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor, deterministic: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return reference.ms_deform_attn_backward(grad_output, value, _to_pairs(shapes), locations, weights)


@torch.library.impl(_lib, "ms_deform_attn_fused", "CompositeExplicitAutograd")
def _fused_forward_reference(
    value: Tensor, shapes: list[int], references: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    _warn_slow_fallback(value.device.type)
    return reference.ms_deform_attn_fused(value, _to_pairs(shapes), references, offsets, logits)


@torch.library.impl(_lib, "ms_deform_attn_fused_backward", "CompositeExplicitAutograd")
def _fused_backward_reference(
    grad_output: Tensor,
    value: Tensor,
    shapes: list[int],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return reference.ms_deform_attn_fused_backward(grad_output, value, _to_pairs(shapes), references, offsets, logits)


@torch.library.register_fake("attnzoo::ms_deform_attn", lib=_lib)
def _forward_fake(value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], locations.shape[2] * value.shape[3])


@torch.library.register_fake("attnzoo::ms_deform_attn_backward", lib=_lib)
def _backward_fake(
    grad_output: Tensor, value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor, deterministic: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return value.new_empty(value.shape), locations.new_empty(locations.shape), weights.new_empty(weights.shape)


@torch.library.register_fake("attnzoo::ms_deform_attn_fused", lib=_lib)
def _fused_forward_fake(
    value: Tensor, shapes: list[int], references: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    return _forward_fake(value, shapes, offsets, logits)


@torch.library.register_fake("attnzoo::ms_deform_attn_fused_backward", lib=_lib)
def _fused_backward_fake(
    grad_output: Tensor,
    value: Tensor,
    shapes: list[int],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_value, grad_references, grad_offsets, grad_logits = (
        t.new_empty(t.shape) for t in (value, references, offsets, logits)
    )
    return grad_value, grad_references, grad_offsets, grad_logits


def _setup_context(ctx: Any, inputs: tuple[Tensor, list[int], Tensor, Tensor], output: Tensor) -> None:
    value, ctx.shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = torch.ops.attnzoo.ms_deform_attn_backward(
        grad_output, value, ctx.shapes, locations, weights, torch.are_deterministic_algorithms_enabled()
    )
    return grad_value, None, grad_locations, grad_weights


def _fused_setup_context(ctx: Any, inputs: tuple[Tensor, list[int], Tensor, Tensor, Tensor], output: Tensor) -> None:
    value, ctx.shapes, references, offsets, logits = inputs
    ctx.save_for_backward(value, references, offsets, logits)


def _fused_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, Tensor, Tensor, Tensor]:
    value, references, offsets, logits = ctx.saved_tensors
    grad_value, grad_references, grad_offsets, grad_logits = torch.ops.attnzoo.ms_deform_attn_fused_backward(
        grad_output, value, ctx.shapes, references, offsets, logits, torch.are_deterministic_algorithms_enabled()
    )
    return grad_value, None, grad_references, grad_offsets, grad_logits


def _double_backward_unsupported(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("ms_deform_attn does not support double backward; on the CPU, attnzoo.ops.reference does")


torch.library.register_autograd("attnzoo::ms_deform_attn", _backward, setup_context=_setup_context, lib=_lib)
torch.library.register_autograd("attnzoo::ms_deform_attn_backward", _double_backward_unsupported, lib=_lib)
torch.library.register_autograd(
    "attnzoo::ms_deform_attn_fused", _fused_backward, setup_context=_fused_setup_context, lib=_lib
)
torch.library.register_autograd("attnzoo::ms_deform_attn_fused_backward", _double_backward_unsupported, lib=_lib)
_eager = EagerOperator(torch.ops.attnzoo.ms_deform_attn.default, _setup_context, _backward)
_eager_fused = EagerOperator(torch.ops.attnzoo.ms_deform_attn_fused.default, _fused_setup_context, _fused_backward)
for _operator in (
    torch.ops.attnzoo.ms_deform_attn.default,
    torch.ops.attnzoo.ms_deform_attn_backward.default,
    torch.ops.attnzoo.ms_deform_attn_fused.default,
    torch.ops.attnzoo.ms_deform_attn_fused_backward.default,
):
    vmap.register_batched_vmap(_operator, _lib)
for _name in ("ms_deform_attn", "ms_deform_attn_fused"):
    autocast.register_autocast(_name, _lib)


# 2 FLOPs per multiply-accumulate, 4 per bilinear sample: the corner coefficients include the attention weight.
@register_flop_formula(torch.ops.attnzoo.ms_deform_attn)
def _forward_flops(value: Sequence[int], shapes: Any, locations: Any, weights: Sequence[int], **_: Any) -> int:
    return 2 * 4 * weights[0] * weights[1] * weights[2] * weights[3] * weights[4] * value[3]


@register_flop_formula(torch.ops.attnzoo.ms_deform_attn_backward)
def _backward_flops(
    grad_output: Any, value: Sequence[int], shapes: Any, locations: Any, weights: Sequence[int], *_: Any, **__: Any
) -> int:
    return 2 * _forward_flops(value, shapes, locations, weights)


@register_flop_formula(torch.ops.attnzoo.ms_deform_attn_fused)
def _fused_forward_flops(
    value: Sequence[int], shapes: Any, references: Any, offsets: Any, logits: Sequence[int], **_: Any
) -> int:
    return _forward_flops(value, shapes, offsets, logits)


@register_flop_formula(torch.ops.attnzoo.ms_deform_attn_fused_backward)
def _fused_backward_flops(
    grad_output: Any,
    value: Sequence[int],
    shapes: Any,
    references: Any,
    offsets: Any,
    logits: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    return 2 * _forward_flops(value, shapes, offsets, logits)
