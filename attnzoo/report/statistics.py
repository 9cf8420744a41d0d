"""Mean and 95 % confidence interval over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """Mean of `n` values ± the half-width of its 95 % confidence interval, None for fewer than two values."""

    mean: float
    ci95: float | None
    n: int


def mean_ci95(values: Sequence[float]) -> Estimate | None:
    """Mean and Student's t interval of independent, roughly normal values; None without values."""
    n = len(values)
    if not n:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Estimate(mean, float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n), n)
