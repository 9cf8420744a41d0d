"""Tests and intervals for paired differences that assume no distribution."""

from collections.abc import Sequence

EXACT_PAIRS = 30  # up to here all 2ⁿ sign patterns are counted
RANDOM_FLIPS = 100_000
RESAMPLES = 9_999


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of the sign-flip (paired permutation) test of the mean, in [2 / 2ⁿ, 1].

    Under the null hypothesis the differences are symmetric about zero, so every pattern of signs is equally likely; the
    p-value is the share of patterns whose mean is at least as far from zero (Fisher, The Design of Experiments, 1935,
    §21). Exact up to 30 pairs, above that from 100,000 random patterns with a fixed seed. `differences`: finite, at
    least one.
    """
    import numpy as np

    values = np.asarray(differences, dtype=float)
    # Patterns that tie with the observed one must count, whatever their rounding error.
    threshold = abs(values.sum()) - 1e-9 * np.abs(values).sum()
    if threshold <= 0:
        return 1.0
    if len(values) > EXACT_PAIRS:
        rng = np.random.default_rng(0)
        flips = (rng.choice([-1.0, 1.0], size=(1_000, len(values))) for _ in range(RANDOM_FLIPS // 1_000))
        extreme = sum(int((np.abs(signs @ values) >= threshold).sum()) for signs in flips)
        return (extreme + 1) / (RANDOM_FLIPS + 1)
    # Every sum is one of the first half plus one of the second: 2ⁿ sums from two lists of 2ⁿᐟ².
    first = second = np.zeros(1)
    for value in values[::2]:
        first = np.concatenate([first + value, first - value])
    for value in values[1::2]:
        second = np.concatenate([second + value, second - value])
    extreme = int((len(second) - np.searchsorted(np.sort(second), threshold - first)).sum())
    return min(1.0, 2 * extreme / 2 ** len(values))  # as many patterns lie below minus the threshold


def bca_interval(values: Sequence[float], level: float = 0.05) -> tuple[float, float] | None:
    """Bias-corrected and accelerated bootstrap interval of the mean, of coverage 1 − `level`; None for equal values.

    9,999 resamples with a fixed seed. Source: Efron, Better Bootstrap Confidence Intervals, JASA 82 (1987). Below 20
    values it is too narrow, see docs/statistics.md.
    """
    import numpy as np
    from scipy import special

    sample = np.asarray(values, dtype=float)
    n, mean = len(sample), sample.mean()
    deviations = sample - mean
    if n < 2 or np.sqrt((deviations**2).mean()) <= 1e-9 * abs(mean):
        return None
    means = sample[np.random.default_rng(0).integers(n, size=(RESAMPLES, n))].mean(axis=1)
    bias = special.ndtri(((means < mean).mean() + (means <= mean).mean()) / 2)
    # The jackknife's means are mean − deviation / (n − 1); the factor cancels.
    acceleration = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
    z = bias + special.ndtri([level / 2, 1 - level / 2])
    low, high = np.quantile(means, special.ndtr(bias + z / (1 - acceleration * z)))
    return float(low), float(high)
