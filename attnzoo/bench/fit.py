"""How cost grows: the exponent of a power law."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PowerLaw:
    """y = scale · x^exponent; `spread` is the standard error of the exponent, None with only two points."""

    scale: float
    exponent: float
    spread: float | None


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """Least squares on logarithms; None with fewer than two different x. All values must be positive."""
    if len(set(x)) < 2:
        return None
    u, v = [math.log(value) for value in x], [math.log(value) for value in y]
    mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
    variance = sum((value - mean_u) ** 2 for value in u)
    exponent = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / variance
    scale = math.exp(mean_v - exponent * mean_u)
    if len(u) < 3:
        return PowerLaw(scale, exponent, None)
    residual = sum((b - mean_v - exponent * (a - mean_u)) ** 2 for a, b in zip(u, v, strict=True))
    return PowerLaw(scale, exponent, math.sqrt(residual / (len(u) - 2) / variance))
