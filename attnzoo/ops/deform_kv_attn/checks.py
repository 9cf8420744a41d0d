"""Argument checks of `deform_kv_attn` and `deform_kv_attn_mlp`.

They raise TypeError for a wrong type or dtype and ValueError for a wrong shape or device.
"""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from attnzoo.ops.checks import check_compatible, check_dense, check_device, check_sizes, check_tensor, format_shape
from attnzoo.ops.deform_kv_attn.reference import Layer


def check_tokens(query: Tensor, key: Tensor, value: Tensor, key_padding: Tensor | None) -> None:
    """Query (B, H, Nq, D), key and value (B, H, Nk, D), of the same dtype and device; key_padding (B, Nk) or None."""
    tokens = {"query": (query, "(B, H, Nq, D)"), "key": (key, "(B, H, Nk, D)"), "value": (value, "(B, H, Nk, D)")}
    for name, (tensor, axes) in tokens.items():
        check_tensor(name, tensor, axes)
        check_device(name, tensor, "query", query)
        if tensor.dtype != query.dtype:
            raise TypeError(f"{name}: is {tensor.dtype}, but query is {query.dtype}")
    batch, heads, _, dim = query.shape
    if heads < 1 or dim < 1:
        raise ValueError(f"query: H and D must be at least 1, got {format_shape(query)}")
    check_sizes("key", key, {"B": batch, "H": heads, "Nk": None, "D": dim})
    check_sizes("value", value, {"B": batch, "H": heads, "Nk": key.shape[2], "D": dim})
    if key_padding is not None:
        _check_key_padding(key_padding, query, key.shape[2])


def check_positions(query_positions: Tensor, key_positions: Tensor, levels: int, query: Tensor, key: Tensor) -> None:
    """Positions (B or 1, L, Nq, 2) and (B, G, Nk, 2)."""
    batch, heads, queries, _ = query.shape
    check_compatible("key_positions", key_positions, "(B, G, Nk, 2)", "query", query)
    check_sizes("key_positions", key_positions, {"B": batch, "G": None, "Nk": key.shape[2], "(x, y)": 2})
    groups = key_positions.shape[1]
    if groups < 1 or heads % groups:
        raise ValueError(f"key_positions: G (axis 1) is {groups}, which does not divide H = {heads}")
    check_compatible("query_positions", query_positions, "(B or 1, L, Nq, 2)", "query", query)
    shared = query_positions.shape[0]
    images = 1 if isinstance(shared, int) and shared == 1 else batch  # a dynamic size compared with 1 could not be 1
    check_sizes("query_positions", query_positions, {"B": images, "L": levels, "Nq": queries, "(x, y)": 2})


def check_tables(tables: Sequence[Tensor], query: Tensor) -> None:
    """One table (H, Th, Tw) per level."""
    if isinstance(tables, Tensor) or not isinstance(tables, Sequence):
        raise TypeError(f"tables: expected a sequence of tensors (H, Th, Tw), got {type(tables).__name__}")
    if not tables:
        raise ValueError("tables: expected at least one level")
    for level, table in enumerate(tables):
        name = f"tables[{level}]"
        check_compatible(name, table, "(H, Th, Tw)", "query", query)
        check_sizes(name, table, {"H": query.shape[1], "Th": None, "Tw": None})
        if table.shape[1] < 1 or table.shape[2] < 1:
            raise ValueError(f"{name}: Th and Tw must be at least 1, got {format_shape(table)}")


def check_mlps(mlps: Sequence[Sequence[Layer]], query: Tensor) -> None:
    """Per level a list of layers (weight (out, in), bias (out,)); the first has 2 inputs, all levels the same sizes."""
    if isinstance(mlps, Tensor) or not isinstance(mlps, Sequence):
        raise TypeError(f"mlps: expected a sequence of layers per level, got {type(mlps).__name__}")
    for level, layers in enumerate(mlps):
        if isinstance(layers, Tensor) or not isinstance(layers, Sequence):
            raise TypeError(f"mlps[{level}]: expected a sequence of (weight, bias), got {type(layers).__name__}")
        for index, layer in enumerate(layers):
            if not isinstance(layer, Sequence) or len(layer) != 2:
                raise TypeError(f"mlps[{level}][{index}]: expected (weight, bias), got {type(layer).__name__}")
    if not mlps or not all(mlps):
        raise ValueError("mlps: expected at least one level with at least one layer")
    for level, layers in enumerate(mlps):
        if len(layers) != len(mlps[0]):
            raise ValueError(f"mlps[{level}]: has {len(layers)} layers, but mlps[0] has {len(mlps[0])}")
        inputs = 2
        for index, (weight, bias) in enumerate(layers):
            name = f"mlps[{level}][{index}]"
            check_compatible(f"{name} weight", weight, "(out, in)", "query", query)
            check_compatible(f"{name} bias", bias, "(out,)", "query", query)
            check_sizes(f"{name} weight", weight, {"out": mlps[0][index][0].shape[0], "in": inputs})
            inputs = weight.shape[0]
            check_sizes(f"{name} bias", bias, {"out": inputs})


def check_mlp_heads(mlps: Sequence[Sequence[Layer]], query: Tensor, key_positions: Tensor) -> None:
    """The last layer has H / G outputs."""
    heads, groups, outputs = query.shape[1], key_positions.shape[1], mlps[0][-1][0].shape[0]
    if outputs * groups != heads:
        raise ValueError(f"mlps[0]: last layer has {outputs} outputs, expected H / G = {heads} / {groups}")


def check_key_counts(key_counts: Sequence[int] | None, levels: int, keys: int) -> Sequence[int]:
    """Check and return the keys per level; None is allowed with one level."""
    if key_counts is None and levels == 1:
        return [keys]
    if isinstance(key_counts, Tensor) or not isinstance(key_counts, Sequence):
        raise TypeError(f"key_counts: expected Python ints, one per level, got {type(key_counts).__name__}")
    if len(key_counts) != levels:
        raise ValueError(f"key_counts: has {len(key_counts)} entries for {levels} levels")
    for count in key_counts:
        if not isinstance(count, (int, torch.SymInt)):
            raise TypeError(f"key_counts: expected Python ints, got {count!r}")
        if count < 0:
            raise ValueError(f"key_counts: must not be negative, got {count}")
    if sum(key_counts) != keys:
        raise ValueError(f"key_counts: sum is {sum(key_counts)}, expected Nk = {keys}")
    return key_counts


def check_scale(scale: float | None, dim: int) -> float:
    """Check and return the softmax scale; default D^-½."""
    if scale is None:
        return dim**-0.5
    if isinstance(scale, bool) or not isinstance(scale, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"scale: expected a Python float, got {type(scale).__name__}")
    if not -sys.float_info.max <= scale <= sys.float_info.max:  # rejects NaN, inf and ints too large for float
        raise ValueError(f"scale: must be finite, got {scale}")
    return scale


def _check_key_padding(key_padding: Tensor, query: Tensor, keys: int) -> None:
    check_dense("key_padding", key_padding, "a bool tensor (B, Nk)")
    if key_padding.dtype != torch.bool:
        raise TypeError(f"key_padding: expected a bool tensor (B, Nk), got {key_padding.dtype}")
    if key_padding.dim() != 2:
        raise ValueError(f"key_padding: expected (B, Nk), got {format_shape(key_padding)}")
    check_device("key_padding", key_padding, "query", query)
    check_sizes("key_padding", key_padding, {"B": query.shape[0], "Nk": keys})
