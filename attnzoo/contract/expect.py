"""Assertions of the clauses; each message is one line that says how to fix the failure."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.testing import assert_close


class Violation(AssertionError):
    """A clause does not hold. The message is one line: what was expected, the actual value, how to fix it."""


def require(condition: bool | Tensor, message: str) -> None:
    """Raise Violation unless `condition` is true."""
    if not condition:
        raise Violation(message)


def require_close(
    actual: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor], message: str, *, atol: float, rtol: float
) -> None:
    """Raise Violation, with the largest difference, unless tensors or lists of tensors are close in value and dtype."""
    try:
        assert_close(actual, expected, atol=atol, rtol=rtol)
    except AssertionError:
        raise Violation(f"{message} ({_difference(_tensors(actual), _tensors(expected))})") from None


@contextmanager
def context(text: str) -> Iterator[None]:
    """Add `text`, such as "on maps of 1 x 1", to an exception raised inside."""
    try:
        yield
    except Exception as error:
        error.add_note(text)
        raise


def _tensors(values: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [values] if isinstance(values, Tensor) else list(values)


def _difference(actual: list[Tensor], expected: list[Tensor]) -> str:
    for a, e in zip(actual, expected, strict=True):
        if a.shape != e.shape:
            return f"shape {tuple(a.shape)} instead of {tuple(e.shape)}"
        if a.dtype != e.dtype:
            return f"{a.dtype} instead of {e.dtype}"
        if not a.isfinite().all():
            return "values are not finite"
    max_error = max(float((a - e).abs().max()) for a, e in zip(actual, expected, strict=True) if a.numel())
    max_value = max(float(e.detach().abs().max()) for e in expected if e.numel())
    return f"by up to {max_error:.2g}, values up to {max_value:.2g}"


def changes(actual: Tensor, expected: Tensor) -> Tensor:
    """Where two outputs (…, C) of one attention differ by more than rounding, (…) bool."""
    scale = expected.detach().abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return ((actual - expected).abs() > 1e-4 * scale).any(-1)
