"""Attention to sampled keys with a relative position bias: Python API, schemas, autograd, fallback, FLOPs."""

import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

from attnzoo.ops import autocast, forward_ad, library, vmap
from attnzoo.ops.checks import HALF_DTYPES
from attnzoo.ops.deform_kv_attn import blocks
from attnzoo.ops.deform_kv_attn.checks import (
    check_key_counts,
    check_mlp_heads,
    check_mlps,
    check_positions,
    check_scale,
    check_tables,
    check_tokens,
)
from attnzoo.ops.deform_kv_attn.reference import Layer
from attnzoo.ops.eager import EagerOperator


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
    """Attention to keys at continuous positions with a relative position bias (Xia et al., DAT, CVPR 2022, eq. 9).

    Each query attends to the keys of all L levels jointly: softmax(`scale` · q·k + bias) · v. The bias is sampled
    bilinearly from the table of the key's level at the displacement from key to query, and is zero outside the table.
    The (Nq × Nk) scores and biases are never materialised.

    - `query`: (B, H, Nq, D); `key`, `value`: (B, H, Nk, D), the levels concatenated
    - `query_positions`: (B or 1, L, Nq, 2), x then y, in table cells of each level
    - `key_positions`: (B, G, Nk, 2), in table cells of the key's level; head h belongs to group h // (H / G)
    - `tables`: (H, Th, Tw) per level, finite. Zero displacement samples the centre, ((Tw - 1) / 2, (Th - 1) / 2);
      a displacement of 1 in x samples one column further right.
    - `key_counts`: keys per level, Python ints; required with several levels
    - `key_padding`: (B, Nk) bool, True for masked keys; fully masked queries return zero
    - `scale`: Python float, default D^-½; not differentiable

    The unit of positions is the caller's choice. For positions in pixels of an (h, w) map, a table (2h - 1, 2w - 1)
    covers all displacements. Multiply coordinates in [-1, 1] with align_corners=True by (Tw - 1) / 4, as DAT halves
    its displacements. NaN and infinite displacements are outside the table.

    Returns (B, H, Nq, D) in the dtype of `query`, stored as (B, Nq, H, D), so `.transpose(1, 2).flatten(2)` is a view.

    With half-precision query, key and value, positions and tables may be float16, bfloat16 or float32, and the
    computation is in float32. Under autocast, query, key and value are cast to the autocast dtype.

    Raises TypeError or ValueError for invalid arguments.
    """
    query, key, value = (autocast.cast(tokens) for tokens in (query, key, value))
    check_tokens(query, key, value, key_padding)
    check_tables(tables, query)
    check_positions(query_positions, key_positions, len(tables), query, key)
    key_counts = check_key_counts(key_counts, len(tables), key.shape[2])
    scale = check_scale(scale, query.shape[-1])
    positions = query_positions.expand(query.shape[0], -1, -1, -1), key_positions
    flat_tables = torch.cat([table.flatten(1) for table in tables], 1)
    tokens = [query, key, value] if query.is_cuda else autocast.widen([query, key, value])
    shapes = [size for table in tables for size in table.shape[1:]]
    operator = _EAGER["deform_kv_attn" if _kernel_supports(query, shapes) else "deform_kv_attn_in_blocks"]
    output, _ = operator(*tokens, *autocast.widen([*positions, flat_tables]), shapes, key_counts, key_padding, scale)
    return output.to(query.dtype)


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
    """`deform_kv_attn` with a bias computed by an MLP from log-spaced displacements.

    The MLP input is sign(d) · ln(1 + |d|) of the displacement d from key to query, in x and y (Liu et al., Swin
    Transformer V2, CVPR 2022, equation 4), in the unit of the positions. The MLP is evaluated for a block of queries
    at a time, and again in the backward pass.

    - `mlps`: per level a list of layers (weight (out, in), bias (out,)) with ReLU in between; 2 inputs (x, y), H / G
      outputs (the heads of a group), and the same sizes for all levels

    Otherwise identical to `deform_kv_attn`.
    """
    query, key, value = (autocast.cast(tokens) for tokens in (query, key, value))
    check_tokens(query, key, value, key_padding)
    check_mlps(mlps, query)
    check_positions(query_positions, key_positions, len(mlps), query, key)
    check_mlp_heads(mlps, query, key_positions)
    key_counts = check_key_counts(key_counts, len(mlps), key.shape[2])
    scale = check_scale(scale, query.shape[-1])
    positions = query_positions.expand(query.shape[0], -1, -1, -1), key_positions
    tensors = autocast.widen([query, key, value, *positions])
    layers = [tensor.to(tensors[0].dtype) for layers in mlps for layer in layers for tensor in layer]
    output, _ = torch.ops.attnzoo.deform_kv_attn_mlp(*tensors, layers, key_counts, key_padding, scale)
    return output.to(query.dtype)


def _kernel_supports(query: Tensor, shapes: Sequence[int]) -> bool:
    """Whether the kernel of the device supports this head dimension and these tables; only CUDA has limits."""
    if not query.is_cuda:
        return True
    double = query.dtype == torch.float64
    fits = len(shapes) <= 2 * 64 and (double or max(shapes) < 2**22)
    return fits and query.shape[-1] <= (64 if double else 128)


_lib = forward_ad.ReverseModeLibrary("attnzoo", "FRAGMENT")
_QKV_ARGS = "Tensor query, Tensor key, Tensor value, Tensor query_positions, Tensor key_positions"
_COMMON_ARGS = "SymInt[] key_counts, Tensor? key_padding, float scale"
_TABLE_ARGS = f"{_QKV_ARGS}, Tensor tables, SymInt[] table_shapes, {_COMMON_ARGS}"
_MLP_ARGS = f"{_QKV_ARGS}, Tensor[] layers, {_COMMON_ARGS}"


def _define(name: str, arguments: str, grad_bias: str) -> None:
    backward_arguments = f"Tensor grad_output, {arguments}, Tensor output, Tensor logsumexp"
    gradients = f"Tensor, Tensor, Tensor, Tensor, Tensor, {grad_bias}"
    for schema in (
        f"{name}({arguments}) -> (Tensor output, Tensor logsumexp)",
        f"{name}_backward({backward_arguments}) -> ({gradients})",
    ):
        _lib.define(schema, tags=(torch.Tag.pt2_compliant_tag,))


_define("deform_kv_attn", _TABLE_ARGS, "Tensor")
_define("deform_kv_attn_in_blocks", _TABLE_ARGS, "Tensor")  # for sizes that the kernel of a device does not support
_define("deform_kv_attn_mlp", _MLP_ARGS, "Tensor[]")
library.load()


@cache
def _warn_fallback(name: str, device_type: str, reason: str | None = None) -> None:
    reason = reason or library.load() or "no compiled kernel for this device"
    warnings.warn(f"attnzoo: {name} on {device_type} runs in plain PyTorch: {reason}", stacklevel=2)


def _table_inputs(
    query: Tensor, key: Tensor, value: Tensor, query_positions: Tensor, key_positions: Tensor, tables: Tensor,
    shapes: list[int], key_counts: list[int], key_padding: Tensor | None, scale: float,
) -> tuple[blocks.Inputs, blocks.TableBias]:  # fmt: skip
    inputs = blocks.Inputs(query, key, value, query_positions, key_positions, key_counts, key_padding, scale)
    return inputs, blocks.TableBias(tables, list(zip(shapes[::2], shapes[1::2], strict=True)))


def _mlp_inputs(
    query: Tensor, key: Tensor, value: Tensor, query_positions: Tensor, key_positions: Tensor, layers: list[Tensor],
    key_counts: list[int], key_padding: Tensor | None, scale: float,
) -> tuple[blocks.Inputs, blocks.MlpBias]:  # fmt: skip
    inputs = blocks.Inputs(query, key, value, query_positions, key_positions, key_counts, key_padding, scale)
    return inputs, blocks.MlpBias(layers, len(key_counts))


# Fallback for devices without a compiled kernel.
@torch.library.impl(_lib, "deform_kv_attn", "CompositeExplicitAutograd")
def _table_forward(query: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    _warn_fallback("deform_kv_attn", query.device.type)
    return _table_forward_in_blocks(query, *args)


@torch.library.impl(_lib, "deform_kv_attn_in_blocks", "CompositeExplicitAutograd")
def _unsupported_table_forward(query: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    reason = f"its kernel does not support {query.shape[-1]} channels per head in {query.dtype}, or such tables"
    _warn_fallback("deform_kv_attn", query.device.type, reason)
    return _table_forward_in_blocks(query, *args)


def _table_forward_in_blocks(query: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    with torch.autocast(query.device.type, enabled=False):
        output, logsumexp = blocks.forward(*_table_inputs(*autocast.widen((query, *args))))
    return output.to(query.dtype), logsumexp


@torch.library.impl(_lib, "deform_kv_attn_backward", "CompositeExplicitAutograd")
@torch.library.impl(_lib, "deform_kv_attn_in_blocks_backward", "CompositeExplicitAutograd")
def _table_backward_in_blocks(grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
    wide_grad_output, *forward_args, output, logsumexp = autocast.widen((grad_output, *args))
    inputs, bias = _table_inputs(*forward_args)
    with torch.autocast(grad_output.device.type, enabled=False):
        gradients = (*blocks.backward(inputs, bias, wide_grad_output, output, logsumexp), bias.gradients)
    return tuple(gradient.to(arg.dtype) for gradient, arg in zip(gradients, args, strict=False))


@torch.library.impl(_lib, "deform_kv_attn_mlp", "CompositeExplicitAutograd")
def _mlp_forward(query: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    _warn_fallback("deform_kv_attn_mlp", query.device.type)
    with torch.autocast(query.device.type, enabled=False):
        return blocks.forward(*_mlp_inputs(query, *args))


@torch.library.impl(_lib, "deform_kv_attn_mlp_backward", "CompositeExplicitAutograd")
def _mlp_backward_in_blocks(grad_output: Tensor, *args: Any) -> tuple[Tensor | list[Tensor], ...]:
    *forward_args, output, logsumexp = args
    inputs, bias = _mlp_inputs(*forward_args)
    with torch.autocast(grad_output.device.type, enabled=False):
        return (*blocks.backward(inputs, bias, grad_output, output, logsumexp), bias.gradients)


@torch.library.register_fake("attnzoo::deform_kv_attn", lib=_lib)
@torch.library.register_fake("attnzoo::deform_kv_attn_in_blocks", lib=_lib)
@torch.library.register_fake("attnzoo::deform_kv_attn_mlp", lib=_lib)
def _forward_fake(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.float32 if query.dtype in HALF_DTYPES else query.dtype
    return blocks.new_token_major(query), query.new_empty(query.shape[:3], dtype=dtype)


@torch.library.register_fake("attnzoo::deform_kv_attn_backward", lib=_lib)
@torch.library.register_fake("attnzoo::deform_kv_attn_in_blocks_backward", lib=_lib)
@torch.library.register_fake("attnzoo::deform_kv_attn_mlp_backward", lib=_lib)
def _backward_fake(grad_output: Tensor, *args: Any) -> tuple[Tensor | list[Tensor], ...]:
    qkv, positions, bias = args[:3], args[3:5], args[5]
    grad_bias = bias.new_empty(bias.shape) if isinstance(bias, Tensor) else [t.new_empty(t.shape) for t in bias]
    return (*map(blocks.new_token_major, qkv), *(t.new_empty(t.shape) for t in positions), grad_bias)


def _setup_table_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.shapes, ctx.key_counts, key_padding, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, key_padding, *output)


def _table_backward(operator: Callable[..., Any], ctx: Any, grad_output: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    *tensors, key_padding, output, logsumexp = ctx.saved_tensors
    gradients = operator(grad_output, *tensors, ctx.shapes, ctx.key_counts, key_padding, ctx.scale, output, logsumexp)
    return (*gradients, None, None, None, None)


def _setup_mlp_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, layers, ctx.key_counts, key_padding, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, key_padding, *output, *layers)


def _mlp_backward(ctx: Any, grad_output: Tensor, _: Any) -> tuple[Tensor | list[Tensor] | None, ...]:
    saved = ctx.saved_tensors
    tensors, (key_padding, output, logsumexp), layers = saved[:5], saved[5:8], saved[8:]
    gradients = torch.ops.attnzoo.deform_kv_attn_mlp_backward(
        grad_output, *tensors, layers, ctx.key_counts, key_padding, ctx.scale, output, logsumexp
    )
    return (*gradients, None, None, None)


def _double_backward_unsupported(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("deform_kv_attn does not support double backward; on the CPU, attnzoo.ops.reference does")


def _register(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None], autocast_devices: Sequence[str]
) -> None:
    torch.library.register_autograd(f"attnzoo::{name}", backward, setup_context=setup_context, lib=_lib)
    torch.library.register_autograd(f"attnzoo::{name}_backward", _double_backward_unsupported, lib=_lib)
    for device_type in autocast_devices:
        torch.library.register_autocast(f"attnzoo::{name}", device_type, torch.float32, lib=_lib)
    for suffix in ("", "_backward"):
        vmap.register_loop_vmap(getattr(torch.ops.attnzoo, f"{name}{suffix}").default, _lib)


def _table_autocast(
    operator: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor, *args: Any
) -> tuple[Tensor, Tensor]:
    """On CUDA, where half-precision tokens are not converted."""
    tokens = [autocast.cast(tensor) for tensor in (query, key, value)]
    with torch.autocast("cuda", enabled=False):
        output, logsumexp = operator(*tokens, *autocast.widen(args))
    return output, logsumexp


_EAGER: dict[str, EagerOperator] = {}
for _name in ("deform_kv_attn", "deform_kv_attn_in_blocks"):
    _operator, _backward_operator = (getattr(torch.ops.attnzoo, f"{_name}{suffix}") for suffix in ("", "_backward"))
    _backward = partial(_table_backward, _backward_operator)
    _register(_name, _backward, _setup_table_context, ("cpu",))
    _lib.impl(_name, partial(_table_autocast, _operator.default), "AutocastCUDA")
    _EAGER[_name] = EagerOperator(_operator.default, _setup_table_context, _backward)
_register("deform_kv_attn_mlp", _mlp_backward, _setup_mlp_context, autocast.DEVICES)


# FLOPs of dense attention, as torch counts them; sampling the bias is elementwise and not counted.
@register_flop_formula([torch.ops.attnzoo.deform_kv_attn, torch.ops.attnzoo.deform_kv_attn_in_blocks])
def _table_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


@register_flop_formula([torch.ops.attnzoo.deform_kv_attn_backward, torch.ops.attnzoo.deform_kv_attn_in_blocks_backward])
def _table_backward_flops(
    grad_output: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(grad_output, query, key, value))


def _mlp_bias_flops(query: Sequence[int], key_positions: Sequence[int], layers: Any, key_counts: Sequence[int]) -> int:
    """FLOPs of the MLP over all query-key pairs, 2 per multiply-accumulate."""
    pairs = query[0] * key_positions[1] * query[2] * key_positions[2]
    weights = layers[: len(layers) // len(key_counts) : 2]
    return 2 * pairs * sum(weight[0] * weight[1] for weight in weights)


@register_flop_formula(torch.ops.attnzoo.deform_kv_attn_mlp)
def _mlp_flops(
    query: Any, key: Any, value: Any, query_positions: Any, key_positions: Any, layers: Any, key_counts: Any,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    return int(sdpa_flop_count(query, key, value)) + _mlp_bias_flops(query, key_positions, layers, key_counts)


# Backward recomputes the MLP and computes gradients of weights and inputs: 3 times forward.
@register_flop_formula(torch.ops.attnzoo.deform_kv_attn_mlp_backward)
def _mlp_backward_flops(
    grad_output: Any, query: Any, key: Any, value: Any, query_positions: Any, key_positions: Any, layers: Any,
    key_counts: Any, *_: Any, **__: Any,
) -> int:  # fmt: skip
    attention = int(sdpa_backward_flop_count(grad_output, query, key, value))
    return attention + 3 * _mlp_bias_flops(query, key_positions, layers, key_counts)
