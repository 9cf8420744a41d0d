"""Repeated looks at growing data: levels that keep the error of all looks together.

Wang and Tsiatis' boundary (Biometrics 43, 1987) with Δ = 1/4, between O'Brien and Fleming's (0) and Pocock's (1/2): at
a look after n of at most N pairs, reject if z ≥ C (n/N)^(Δ − 1/2), where z is the normal quantile of the t-test's
p-value. C comes from the joint null distribution of the t statistics at these looks rather than from its normal limit,
as Rom and McTague (J. Biopharm. Stat. 30, 2020) advise for small samples. Simulations chose Δ: docs/statistics.md.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

EXPONENT = 0.25
PATHS = 100_000  # each used with both signs


def planned_looks(at_least: int, at_most: int, per_round: int = 1) -> tuple[int, ...]:
    """Numbers of pairs at which to look: `at_least`, then after every round, and at last `at_most`.

    Raises ValueError unless 2 ≤ at_least ≤ at_most and per_round ≥ 1.
    """
    if not 2 <= at_least <= at_most or per_round < 1:
        raise ValueError(
            f"expected 2 <= at_least <= at_most and per_round >= 1; got {at_least}, {at_most}, {per_round}"
        )
    return (*range(at_least, at_most, per_round), at_most)


def nominal_levels(looks: Sequence[int], level: float, exponent: float = EXPONENT) -> list[float]:
    """The largest one-sided p-value that rejects at each look, so that one at any look has probability `level`.

    `looks`: all planned numbers of pairs, increasing; `exponent`: Δ. With one look it is `level` itself. The constant C
    is a quantile of simulated null data with a fixed seed; its error changes `level` by 1 % of itself at 0.025 and by
    5 % at 0.0017.
    """
    if len(looks) == 1:
        return [level]
    from scipy import special

    maxima = _null_maxima(tuple(looks), exponent)
    constant = maxima[math.ceil((1 - level) * len(maxima)) - 1]
    return [float(value) for value in special.ndtr(-constant * _shape(looks, exponent))]


def _shape(looks: Sequence[int], exponent: float) -> Any:
    import numpy as np

    return (np.asarray(looks) / looks[-1]) ** (exponent - 0.5)


@lru_cache(maxsize=16)
def _null_maxima(looks: tuple[int, ...], exponent: float) -> Any:
    """Sorted sample of the maximum over the looks of z / shape, for normal differences of mean zero."""
    import numpy as np
    from scipy import special

    rng = np.random.default_rng(0)
    total, squares = np.zeros(PATHS), np.zeros(PATHS)
    upper, lower = np.full(PATHS, -np.inf), np.full(PATHS, -np.inf)
    factors = dict(zip(looks, _shape(looks, exponent), strict=True))
    for n in range(1, looks[-1] + 1):
        values = rng.standard_normal(PATHS)
        total += values
        squares += values**2
        if n in factors:
            t = total / np.sqrt(n * (squares - total**2 / n) / (n - 1))
            # As t, z is antisymmetric: the tail of -|t| keeps its precision where 1 - p would round to 1.
            z = np.copysign(special.ndtri(special.stdtr(n - 1, -np.abs(t))), t) / factors[n]
            np.maximum(upper, z, out=upper)
            np.maximum(lower, -z, out=lower)
    return np.sort(np.concatenate([upper, lower]))
