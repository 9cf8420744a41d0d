"""Correctness check against a float64 reference; it runs before any timing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attnzoo.bench.operators.base import OpFn, forward_backward

TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Largest error relative to the largest element. It allows a few roundings, of coordinates of large maps too."""


def max_relative_errors(
    fn: OpFn,
    names: Sequence[str],
    tensors: tuple[Tensor, ...],
    grad_output: Tensor,
    expected: Sequence[Tensor],
    backward: bool = True,
) -> dict[str, float]:
    """Largest error of the output and, if `backward`, of every gradient, relative to the largest expected element."""
    if backward:
        actual = forward_backward(fn, tensors, grad_output)
    else:
        with torch.no_grad():
            actual = [fn(*tensors)]
    labels = ["output", *(f"gradient of {name}" for name in names)]
    return {label: max_relative_error(a, e) for label, a, e in zip(labels, actual, expected, strict=backward)}


def max_relative_error(actual: Tensor, expected: Tensor) -> float:
    """max |actual - expected| / max |expected|; infinite if shapes differ or a value is not finite."""
    if actual.shape != expected.shape or not bool(actual.isfinite().all()):
        return float("inf")
    scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return float((actual.to(expected.dtype) - expected).abs().max() / scale)


def check_tolerances(errors: dict[str, float], dtype: torch.dtype) -> str | None:
    """A message about the largest error if it exceeds the tolerance, else None."""
    worst = max(errors, key=lambda label: errors[label])
    if errors[worst] <= TOLERANCES[dtype]:
        return None
    return f"{worst}: relative error {errors[worst]:.1e}, allowed {TOLERANCES[dtype]:.0e}"
