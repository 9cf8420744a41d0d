"""Eager calls of operators without the Python layers of torch.library's autograd.

For few queries they take longer than a kernel. Compilation, tracing, function transforms and tensor subclasses need
them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)


@dataclass(frozen=True, eq=False)
class EagerOperator:
    """An operator with the `setup_context` and `backward` that were given to `register_autograd`."""

    operator: torch._ops.OpOverload
    setup_context: Callable[..., None]
    backward: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if not _is_plain_eager() or not all(type(tensor) in _PLAIN for tensor in tensors):
            return self.operator(*args)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return _Differentiable.apply(self, *args)
        with torch._C._AutoDispatchBelowAutograd():
            return self.operator(*args)


def _is_plain_eager() -> bool:
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state()
        or torch.autograd.forward_ad._current_level >= 0
    )


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, eager: EagerOperator, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = eager.operator(*args)
        eager.setup_context(ctx, args, output)
        ctx.eager = eager
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():  # create_graph: the backward operator reports that it has no derivative
            return None, *ctx.eager.backward(ctx, *grads)
        with torch._C._AutoDispatchBelowAutograd():
            return None, *ctx.eager.backward(ctx, *grads)
