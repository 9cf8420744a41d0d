"""vmap for the operators: by joining the mapped dimension to the batch, or by calls one after the other."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def register(operator: torch._ops.OpOverload, library: torch.library.Library) -> None:
    """Give `operator`, whose tensors all begin with the batch dimension, a rule that joins the mapped dimension to it.

    A tensor that is not mapped is repeated, so gradients sum over the mapped dimension as they should.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        size = info.batch_size
        joined = [_join(argument, dim, size) for argument, dim in zip(arguments, in_dims, strict=True)]
        first, dim = next((a, dim) for a, dim in zip(arguments, in_dims, strict=True) if isinstance(a, Tensor))
        batch = first.shape[0] if dim is None else first.movedim(dim, 0).shape[1]
        results = operator(*joined)
        if isinstance(results, Tensor):
            return results.unflatten(0, (size, batch)), 0
        return tuple(result.unflatten(0, (size, batch)) for result in results), (0,) * len(results)

    torch.library.register_vmap(operator, rule, lib=library)


def _join(argument: Any, dim: int | None, size: int) -> Any:
    """The argument with its mapped dimension joined to the batch."""
    if not isinstance(argument, Tensor):
        return argument
    mapped = argument.expand(size, *argument.shape) if dim is None else argument.movedim(dim, 0)
    return mapped.flatten(0, 1)


def register_loop(operator: torch._ops.OpOverload, library: torch.library.Library) -> None:
    """Give `operator`, some of whose tensors have no batch dimension, a rule that calls it once per mapped element."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        if not info.batch_size:
            raise ValueError("vmap over a dimension of size 0")
        results = [operator(*_select(arguments, in_dims, index)) for index in range(info.batch_size)]
        stacked = _stack(results)
        return stacked, _zeros_like(stacked)

    torch.library.register_vmap(operator, rule, lib=library)


def _select(arguments: Any, dims: Any, index: int) -> list[Any]:
    """The arguments of one call; lists of tensors have lists of dimensions."""
    return [
        _select(argument, dim, index)
        if isinstance(dim, (list, tuple))
        else (argument if dim is None else argument.select(dim, index))
        for argument, dim in zip(arguments, dims, strict=True)
    ]


def _stack(results: Sequence[Any]) -> Any:
    """Tensors stacked in front, through tuples and lists of them."""
    if isinstance(results[0], Tensor):
        return torch.stack(tuple(results))
    return type(results[0])(_stack(parts) for parts in zip(*results, strict=True))


def _zeros_like(results: Any) -> Any:
    """Dimension 0 for every tensor."""
    return 0 if isinstance(results, Tensor) else type(results)(_zeros_like(part) for part in results)
