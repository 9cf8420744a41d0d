"""Arguments and calls of the CUDA operators of `deform_kv_attn`."""

from typing import Any

import torch
from torch import Tensor


def registered(call: dict[str, Any], scale: float | None = None) -> tuple[Any, ...]:
    """The arguments of the registered operator for a call of the Python API."""
    tables = call["tables"]
    scale = call["query"].shape[-1] ** -0.5 if scale is None else scale
    return (
        *(call[name] for name in ("query", "key", "value")),
        call["query_positions"].expand(len(call["query"]), -1, -1, -1),
        call["key_positions"],
        torch.cat([table.flatten(1) for table in tables], 1),
        [size for table in tables for size in table.shape[1:]],
        call["key_counts"],
        call["key_padding"],
        scale,
    )


def moved(args: tuple[Any, ...], to: str | torch.dtype) -> tuple[Any, ...]:
    """Move tensors to a device, or floating-point tensors to a dtype."""

    def move(x: Any) -> Any:
        keeps = not isinstance(x, Tensor) or (isinstance(to, torch.dtype) and not x.is_floating_point())
        return x if keeps else x.to(to)

    return tuple(move(x) for x in args)


def in_half(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """Query, key and value in half precision, all else in float32."""
    return (*moved(args[:3], dtype), *args[3:])


def grad_for(output: Tensor) -> Tensor:
    """An output gradient with distinct values."""
    return torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output).to(output)


def run(ops: Any, args: tuple[Any, ...], grad_output: Tensor | None = None) -> tuple[Tensor, ...]:
    """Output, logsumexp, and gradients of query, key, value, both positions and tables."""
    output, logsumexp = ops.deform_kv_attn(*args)
    grad_output = grad_for(output) if grad_output is None else grad_output.to(output)
    return output, logsumexp, *ops.deform_kv_attn_backward(grad_output, *args, output, logsumexp)
