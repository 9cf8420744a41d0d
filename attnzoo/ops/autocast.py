"""Autocast for the operators: values take its dtype, coordinates and what becomes a weight stay in float32."""

import torch
from torch import Tensor

from attnzoo.ops.checks import HALF

DEVICES = ("cpu", "cuda")


def cast(tokens: Tensor) -> Tensor:
    """Tokens as `torch.nn.functional.scaled_dot_product_attention` takes them under autocast; float64 is left alone.

    So is what the checks refuse.
    """
    if not isinstance(tokens, Tensor) or tokens.layout != torch.strided:
        return tokens
    if tokens.dtype not in (*HALF, torch.float32):
        return tokens
    kind = tokens.device.type
    casts = kind in DEVICES and torch.is_autocast_enabled(kind)
    return tokens.to(torch.get_autocast_dtype(kind)) if casts else tokens


def register(name: str, library: torch.library.Library) -> None:
    """Give `attnzoo::name`, whose tensors are a value and samples of it, its autocast rule.

    `torch.library.register_autocast` has one dtype for all tensors, which would round coordinates.
    """
    operator = getattr(torch.ops.attnzoo, name).default

    def rule(value: Tensor, shapes: list[int], *samples: Tensor) -> Tensor:
        given = [tensor.float() if tensor.dtype in HALF else tensor for tensor in samples]
        value = cast(value)
        with torch.autocast(value.device.type, enabled=False):
            output: Tensor = operator(value, shapes, *given)
        return output

    for kind in DEVICES:
        library.impl(name, rule, f"Autocast{kind.upper()}")
