"""Whether an implementation computes what it should: nothing is timed before this is known."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attnzoo.bench.operators.base import Call, differentiate

TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Largest error allowed, in units of the largest element of the tensor at hand: a few roundings of each dtype,
in coordinates of maps several hundred pixels wide too."""


def errors(
    call: Call, names: Sequence[str], tensors: tuple[Tensor, ...], slope: Tensor, truth: Sequence[Tensor]
) -> dict[str, float]:
    """Largest error of the output and of every gradient against `truth`, relative to the largest true element."""
    found = differentiate(call, tensors, slope)
    labels = ["output", *(f"gradient of {name}" for name in names)]
    return {label: distance(got, want) for label, got, want in zip(labels, found, truth, strict=True)}


def distance(got: Tensor, want: Tensor) -> float:
    """max |got - want| / max |want|; infinite where shapes differ or a value is not finite."""
    if got.shape != want.shape or not bool(got.isfinite().all()):
        return float("inf")
    scale = want.abs().max().clamp(min=torch.finfo(want.dtype).tiny)
    return float((got.to(want.dtype) - want).abs().max() / scale)


def verdict(found: dict[str, float], dtype: torch.dtype) -> str | None:
    """None where all errors are within tolerance, otherwise the worst of them in words."""
    worst = max(found, key=lambda label: found[label])
    if found[worst] <= TOLERANCES[dtype]:
        return None
    return f"{worst} is off by {found[worst]:.1e} of its largest element, allowed {TOLERANCES[dtype]:.0e}"
