"""vmap rules of the operators: fold the mapped dimension into the batch, or loop over it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def register_batched_vmap(operator: torch._ops.OpOverload, lib: torch.library.Library) -> None:
    """Register a rule that folds the mapped dimension into the batch, for tensors that all start with the batch.

    Unmapped tensors are repeated, so their gradients are summed over the mapped dimension.
    """

    def batched(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        folded = [_fold_into_batch(arg, dim, size) for arg, dim in zip(args, in_dims, strict=True)]
        tensor, dim = next((arg, dim) for arg, dim in zip(args, in_dims, strict=True) if isinstance(arg, Tensor))
        batch = tensor.shape[0] if dim is None else tensor.movedim(dim, 0).shape[1]
        results = operator(*folded)
        if isinstance(results, Tensor):
            return results.unflatten(0, (size, batch)), 0
        return tuple(result.unflatten(0, (size, batch)) for result in results), (0,) * len(results)

    torch.library.register_vmap(operator, batched, lib=lib)


def _fold_into_batch(arg: Any, dim: int | None, size: int) -> Any:
    if not isinstance(arg, Tensor):
        return arg
    mapped = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
    return mapped.flatten(0, 1)


def register_loop_vmap(operator: torch._ops.OpOverload, lib: torch.library.Library) -> None:
    """Register a rule that calls the operator per mapped element, for operators with tensors without a batch."""

    def loop(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        if not info.batch_size:
            raise ValueError("vmap over a dimension of size 0")
        stacked = _stack([operator(*_select(args, in_dims, index)) for index in range(info.batch_size)])
        return stacked, _zero_dims(stacked)

    torch.library.register_vmap(operator, loop, lib=lib)


def _select(args: Any, dims: Any, index: int) -> list[Any]:
    """The arguments of one call; lists of tensors have lists of dimensions."""
    return [
        _select(arg, dim, index) if isinstance(dim, (list, tuple)) else (arg if dim is None else arg.select(dim, index))
        for arg, dim in zip(args, dims, strict=True)
    ]


def _stack(results: Sequence[Any]) -> Any:
    """Stack nested results along dimension 0."""
    if isinstance(results[0], Tensor):
        return torch.stack(tuple(results))
    return type(results[0])(_stack(parts) for parts in zip(*results, strict=True))


def _zero_dims(results: Any) -> Any:
    """Dimension 0 for every tensor."""
    return 0 if isinstance(results, Tensor) else type(results)(_zero_dims(part) for part in results)
