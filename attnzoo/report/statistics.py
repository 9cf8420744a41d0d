"""Mean and 95 % confidence interval over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Estimate:
    """Mean of `n` values ± the half-width of its 95 % confidence interval, None for fewer than two values."""

    mean: float
    ci95: float | None
    n: int


def mean_ci95(values: Sequence[float]) -> Estimate | None:
    """Mean and Student's t interval of independent, roughly normal values; None without values.

    No interval if one of them is not finite.
    """
    n = len(values)
    if n < 2:
        return Estimate(values[0], None, 1) if values else None
    if not all(map(math.isfinite, values)):
        return Estimate(fmean(values), None, n)
    from scipy import special  # scipy.stats takes a second to import

    return Estimate(fmean(values), float(special.stdtrit(n - 1, 0.975)) * stdev(values) / n**0.5, n)
