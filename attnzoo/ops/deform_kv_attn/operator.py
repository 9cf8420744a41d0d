"""Attention to displaced keys with a relative position bias: schemas, fake and autograd rules, FLOPs, Python faces."""

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

from attnzoo.ops import autocast, library, tangents, vmap
from attnzoo.ops.checks import HALF
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

    Every query q sees all keys k, of all L levels jointly: softmax over k of `scale` · q·k + bias, times the values.
    The bias is read bilinearly from the table of the key's level, at the displacement from key to query, and is zero
    beyond the table. Its (Nq × Nk) values are never held in memory.

    - `query`: (B, H, Nq, D); `key`, `value`: (B, H, Nk, D), the levels concatenated
    - `query_positions`: (B or 1, L, Nq, 2), x then y, in cells of each level's table
    - `key_positions`: (B, G, Nk, 2), in cells of the key's own level; head h belongs to group h // (H / G)
    - `tables`: (H, Th, Tw) per level, finite. A displacement of zero reads the middle of the table, ((Tw - 1) / 2,
      (Th - 1) / 2), and one cell more in x reads one column further right.
    - `key_counts`: keys per level, Python ints; needed with several levels
    - `key_padding`: (B, Nk) bool, True where a key is not to be seen; a query that sees none gives zero
    - `scale`: D^-½ unless given, a Python number: it has no gradient

    So a caller chooses the unit of positions. In pixels of a map of h × w, a table of (2h - 1, 2w - 1) covers every
    displacement; coordinates over [-1, 1] with align_corners=True count (Tw - 1) / 4 cells each (DAT halves its
    displacements). A NaN or infinite displacement lies beyond the table.

    Returns (B, H, Nq, D) in the dtype of `query`, ordered in memory so that `.transpose(1, 2).flatten(2)` is free.
    Beside half-precision tokens, positions and tables may be float16, bfloat16 or float32; the computation is in
    float32 then. Under autocast, query, key and value take its dtype.

    Raises TypeError or ValueError naming the argument that does not fit.
    """
    query, key, value = (autocast.cast(tokens) for tokens in (query, key, value))
    check_tokens(query, key, value, key_padding)
    check_tables(tables, query)
    check_positions(query_positions, key_positions, len(tables), query, key)
    key_counts = check_key_counts(key_counts, len(tables), key.shape[2])
    scale = check_scale(scale, query.shape[-1])
    positions = query_positions.expand(query.shape[0], -1, -1, -1), key_positions
    floats = _in_one_precision([query, key, value, *positions, torch.cat([table.flatten(1) for table in tables], 1)])
    shapes = [size for table in tables for size in table.shape[1:]]
    fits = _kernels_take(floats[0], len(tables))
    operator = torch.ops.attnzoo.deform_kv_attn if fits else torch.ops.attnzoo.deform_kv_attn_in_blocks
    output, _ = operator(*floats, shapes, key_counts, key_padding, scale)
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
    """As `deform_kv_attn`, with the bias computed by a perceptron from log-spaced displacements.

    The input of the perceptron is sign(d) · ln(1 + |d|) of the displacement from key to query in x and y (Liu et al.,
    Swin Transformer V2, CVPR 2022, equation 4), in whatever unit the positions have. It is evaluated for a block of
    queries at a time, and again in the backward pass.

    - `mlps`: per level its layers, each weight (out, in) and bias (out,), with ReLU between them. The first takes
      (x, y), the last gives the H / G heads of a group; all levels have equally many layers of equal sizes.

    The other arguments, the result and the errors are those of `deform_kv_attn`.
    """
    query, key, value = (autocast.cast(tokens) for tokens in (query, key, value))
    check_tokens(query, key, value, key_padding)
    check_mlps(mlps, query)
    check_positions(query_positions, key_positions, len(mlps), query, key)
    check_mlp_heads(mlps, query, key_positions)
    key_counts = check_key_counts(key_counts, len(mlps), key.shape[2])
    scale = check_scale(scale, query.shape[-1])
    positions = query_positions.expand(query.shape[0], -1, -1, -1), key_positions
    floats = _in_one_precision([query, key, value, *positions])
    layers = [tensor.to(floats[0].dtype) for layers in mlps for layer in layers for tensor in layer]
    output, _ = torch.ops.attnzoo.deform_kv_attn_mlp(*floats, layers, key_counts, key_padding, scale)
    return output.to(query.dtype)


def _kernels_take(query: Tensor, levels: int) -> bool:
    """Whether the kernels of its device take such heads and so many levels: those for CUDA have limits."""
    channels = 64 if query.dtype == torch.float64 else 128
    return not query.is_cuda or (query.shape[-1] <= channels and levels <= 64)


def _in_one_precision(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.float() for tensor in tensors] if tensors[0].dtype in HALF else tensors


_operators = tangents.Library("attnzoo", "FRAGMENT")
_TOKENS = "Tensor query, Tensor key, Tensor value, Tensor query_positions, Tensor key_positions"
_OTHERS = "SymInt[] key_counts, Tensor? key_padding, float scale"
_TABLE = f"{_TOKENS}, Tensor tables, SymInt[] table_shapes, {_OTHERS}"
_MLP = f"{_TOKENS}, Tensor[] layers, {_OTHERS}"
_FIVE = "Tensor, Tensor, Tensor, Tensor, Tensor"
for _name, _arguments, _by_bias in (
    ("deform_kv_attn", _TABLE, "Tensor"),
    ("deform_kv_attn_in_blocks", _TABLE, "Tensor"),  # for what the kernels of a device do not take
    ("deform_kv_attn_mlp", _MLP, "Tensor[]"),
):
    _backward = f"Tensor grad_output, {_arguments}, Tensor output, Tensor logsumexp"
    for _schema in (
        f"{_name}({_arguments}) -> (Tensor output, Tensor logsumexp)",
        f"{_name}_backward({_backward}) -> ({_FIVE}, {_by_bias})",
    ):
        _operators.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
library.load()


@cache
def _warn_of_blocks(name: str, device_type: str, why: str | None = None) -> None:
    why = why or library.load() or "the compiled library holds no kernels of it for this device"
    warnings.warn(f"attnzoo: {name} on {device_type} runs in plain PyTorch: {why}", stacklevel=2)


def _table_call(
    query: Tensor, key: Tensor, value: Tensor, query_positions: Tensor, key_positions: Tensor, tables: Tensor,
    shapes: list[int], counts: list[int], key_padding: Tensor | None, scale: float,
) -> tuple[blocks.Call, blocks.TableBias]:  # fmt: skip
    call = blocks.Call(query, key, value, query_positions, key_positions, counts, key_padding, scale)
    return call, blocks.TableBias(tables, list(zip(shapes[::2], shapes[1::2], strict=True)))


def _mlp_call(
    query: Tensor, key: Tensor, value: Tensor, query_positions: Tensor, key_positions: Tensor, layers: list[Tensor],
    counts: list[int], key_padding: Tensor | None, scale: float,
) -> tuple[blocks.Call, blocks.MlpBias]:  # fmt: skip
    call = blocks.Call(query, key, value, query_positions, key_positions, counts, key_padding, scale)
    return call, blocks.MlpBias(layers, len(counts))


# The blocked form stands in wherever the library has no kernel for a device.
@torch.library.impl(_operators, "deform_kv_attn", "CompositeExplicitAutograd")
def _table_forward_in_blocks(query: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    _warn_of_blocks("deform_kv_attn", query.device.type)
    with torch.autocast(query.device.type, enabled=False):
        return blocks.forward(*_table_call(query, *others))


@torch.library.impl(_operators, "deform_kv_attn_in_blocks", "CompositeExplicitAutograd")
def _wide_forward_in_blocks(query: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    why = f"heads of {query.shape[-1]} channels in {query.dtype}, or so many levels, are more than its kernels take"
    _warn_of_blocks("deform_kv_attn", query.device.type, why)
    with torch.autocast(query.device.type, enabled=False):
        return blocks.forward(*_table_call(query, *others))


@torch.library.impl(_operators, "deform_kv_attn_backward", "CompositeExplicitAutograd")
@torch.library.impl(_operators, "deform_kv_attn_in_blocks_backward", "CompositeExplicitAutograd")
def _table_backward_in_blocks(grad_output: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *arguments, output, log_sums = others
    call, bias = _table_call(*arguments)
    with torch.autocast(grad_output.device.type, enabled=False):
        return (*blocks.backward(call, bias, grad_output, output, log_sums), bias.gradients)


@torch.library.impl(_operators, "deform_kv_attn_mlp", "CompositeExplicitAutograd")
def _mlp_forward_in_blocks(query: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    _warn_of_blocks("deform_kv_attn_mlp", query.device.type)
    with torch.autocast(query.device.type, enabled=False):
        return blocks.forward(*_mlp_call(query, *others))


@torch.library.impl(_operators, "deform_kv_attn_mlp_backward", "CompositeExplicitAutograd")
def _mlp_backward_in_blocks(grad_output: Tensor, *others: Any) -> tuple[Tensor | list[Tensor], ...]:
    *arguments, output, log_sums = others
    call, bias = _mlp_call(*arguments)
    with torch.autocast(grad_output.device.type, enabled=False):
        return (*blocks.backward(call, bias, grad_output, output, log_sums), bias.gradients)


@torch.library.register_fake("attnzoo::deform_kv_attn", lib=_operators)
@torch.library.register_fake("attnzoo::deform_kv_attn_in_blocks", lib=_operators)
@torch.library.register_fake("attnzoo::deform_kv_attn_mlp", lib=_operators)
def _forward_fake(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return blocks.new_by_token(query), query.new_empty(query.shape[:3])


@torch.library.register_fake("attnzoo::deform_kv_attn_backward", lib=_operators)
@torch.library.register_fake("attnzoo::deform_kv_attn_in_blocks_backward", lib=_operators)
@torch.library.register_fake("attnzoo::deform_kv_attn_mlp_backward", lib=_operators)
def _backward_fake(grad_output: Tensor, *others: Any) -> tuple[Tensor | list[Tensor], ...]:
    tokens, positions, bias = others[:3], others[3:5], others[5]
    by_bias = bias.new_empty(bias.shape) if isinstance(bias, Tensor) else [t.new_empty(t.shape) for t in bias]
    return (*map(blocks.new_by_token, tokens), *(tensor.new_empty(tensor.shape) for tensor in positions), by_bias)


def _save_table(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.shapes, ctx.counts, key_padding, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, key_padding, *output)


def _table_rule(backward: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    def differentiate(ctx: Any, grad_output: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        *tensors, key_padding, output, log_sums = ctx.saved_tensors
        gradients = backward(grad_output, *tensors, ctx.shapes, ctx.counts, key_padding, ctx.scale, output, log_sums)
        return (*gradients, None, None, None, None)

    return differentiate


def _save_mlp(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tokens, layers, ctx.counts, key_padding, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tokens, key_padding, *output, *layers)


def _mlp_backward(ctx: Any, grad_output: Tensor, _: Any) -> tuple[Tensor | list[Tensor] | None, ...]:
    saved = ctx.saved_tensors
    tokens, (key_padding, output, log_sums), layers = saved[:5], saved[5:8], saved[8:]
    gradients = torch.ops.attnzoo.deform_kv_attn_mlp_backward(
        grad_output, *tokens, layers, ctx.counts, key_padding, ctx.scale, output, log_sums
    )
    return (*gradients, None, None, None)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(
        "deform_kv_attn has no second derivative; attnzoo.ops.deform_kv_attn.reference on CPU has one"
    )


for _name, _rule, _save in (
    ("deform_kv_attn", _table_rule(torch.ops.attnzoo.deform_kv_attn_backward), _save_table),
    (
        "deform_kv_attn_in_blocks",
        _table_rule(torch.ops.attnzoo.deform_kv_attn_in_blocks_backward),
        _save_table,
    ),
    ("deform_kv_attn_mlp", _mlp_backward, _save_mlp),
):
    torch.library.register_autograd(f"attnzoo::{_name}", _rule, setup_context=_save, lib=_operators)
    torch.library.register_autograd(f"attnzoo::{_name}_backward", _no_second_derivative, lib=_operators)
    for _kind in autocast.DEVICES:
        torch.library.register_autocast(f"attnzoo::{_name}", _kind, torch.float32, lib=_operators)
    for _suffix in ("", "_backward"):
        vmap.register_loop(getattr(torch.ops.attnzoo, f"{_name}{_suffix}").default, _operators)


# As torch counts dense attention; like other work per pair outside matrix products, reading a table is not counted.
@register_flop_formula([torch.ops.attnzoo.deform_kv_attn, torch.ops.attnzoo.deform_kv_attn_in_blocks])
def _table_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


@register_flop_formula([torch.ops.attnzoo.deform_kv_attn_backward, torch.ops.attnzoo.deform_kv_attn_in_blocks_backward])
def _table_backward_flops(
    grad_output: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(grad_output, query, key, value))


def _evaluation_flops(query: Sequence[int], key_positions: Sequence[int], layers: Any, counts: Sequence[int]) -> int:
    """Of the perceptrons for all pairs, two per multiply-accumulate."""
    pairs = query[0] * key_positions[1] * query[2] * key_positions[2]
    weights = layers[: len(layers) // len(counts) : 2]
    return 2 * pairs * sum(weight[0] * weight[1] for weight in weights)


@register_flop_formula(torch.ops.attnzoo.deform_kv_attn_mlp)
def _mlp_flops(
    query: Any, key: Any, value: Any, query_positions: Any, key_positions: Any, layers: Any, counts: Any,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    return int(sdpa_flop_count(query, key, value)) + _evaluation_flops(query, key_positions, layers, counts)


# The perceptrons are evaluated again, and their gradients by weight and by input cost as much each.
@register_flop_formula(torch.ops.attnzoo.deform_kv_attn_mlp_backward)
def _mlp_backward_flops(
    grad_output: Any, query: Any, key: Any, value: Any, query_positions: Any, key_positions: Any, layers: Any,
    counts: Any, *_: Any, **__: Any,
) -> int:  # fmt: skip
    attention = int(sdpa_backward_flop_count(grad_output, query, key, value))
    return attention + 3 * _evaluation_flops(query, key_positions, layers, counts)
