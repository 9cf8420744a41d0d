"""Forward-mode differentiation is refused: torch has no rule for it in registered operators."""

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad
from torch import Tensor


class Library(torch.library.Library):
    """A library whose operators refuse tangents, as in `torch.func.jvp` and `jacfwd`, with NotImplementedError.

    torch would take the derivative for zero without a word. The refusal stands before the rules that
    `torch.library.register_autograd` gives the operators, which traced graphs do not hold.
    """

    def impl(self, op_name: Any, fn: Callable[..., Any], dispatch_key: str = "", **options: Any) -> None:
        """As in torch; called by `torch.library.register_autograd` too."""
        if dispatch_key == "Autograd":
            fn = _refusing(str(op_name), fn)
        super().impl(op_name, fn, dispatch_key, **options)


def _refusing(name: str, rule: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(keyset: Any, *arguments: Any, **others: Any) -> Any:
        if torch.autograd.forward_ad._current_level >= 0 and _any_tangent(arguments):
            raise NotImplementedError(f"{name} has no forward-mode derivative; differentiate with torch.autograd")
        return rule(keyset, *arguments, **others)

    return guarded


def _any_tangent(arguments: Any) -> bool:
    """Whether a tensor among them, or in a list among them, carries one."""
    return any(
        torch.autograd.forward_ad.unpack_dual(argument).tangent is not None
        if isinstance(argument, Tensor)
        else isinstance(argument, (list, tuple)) and _any_tangent(argument)
        for argument in arguments
    )
