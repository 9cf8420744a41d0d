"""Raise on forward-mode AD, which operators of torch.library do not support."""

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad
from torch import Tensor


class ReverseModeLibrary(torch.library.Library):
    """A library whose operators raise NotImplementedError for tangents, as in `torch.func.jvp` and `jacfwd`.

    torch would silently return zero tangents. The check wraps the autograd kernels, which traced graphs do not contain.
    """

    def impl(self, op_name: Any, fn: Callable[..., Any], dispatch_key: str = "", **options: Any) -> None:
        """As in torch; called by `torch.library.register_autograd` too."""
        if dispatch_key == "Autograd":
            fn = _without_forward_ad(str(op_name), fn)
        super().impl(op_name, fn, dispatch_key, **options)


def _without_forward_ad(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.autograd.forward_ad._current_level >= 0 and _has_tangent(args):
            raise NotImplementedError(f"{name} does not support forward-mode AD; use torch.autograd")
        return kernel(keyset, *args, **kwargs)

    return wrapper


def _has_tangent(args: Any) -> bool:
    """Whether any tensor, also in nested lists, has a tangent."""
    return any(
        torch.autograd.forward_ad.unpack_dual(arg).tangent is not None
        if isinstance(arg, Tensor)
        else isinstance(arg, (list, tuple)) and _has_tangent(arg)
        for arg in args
    )
