"""vmap for operators whose tensors all begin with the batch dimension: the mapped dimension joins it."""

from typing import Any

import torch
from torch import Tensor


def register(operator: torch._ops.OpOverload, library: torch.library.Library) -> None:
    """Give `operator`, a `torch.ops.attnzoo` overload, its vmap rule.

    A tensor that is not mapped is repeated, so gradients sum over the mapped dimension as they should.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        size = info.batch_size
        joined = [_join(argument, dim, size) for argument, dim in zip(arguments, in_dims, strict=True)]
        batch = next(a for a in joined if isinstance(a, Tensor)).shape[0] // size
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
