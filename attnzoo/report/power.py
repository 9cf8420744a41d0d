"""How many pairs a paired t-test needs."""

from collections.abc import Callable

POWER = 0.8
MAX_PAIRS = 9_999
MIN_PAIRS = 3  # two pairs say next to nothing about their deviation
LARGE_EFFECT = 3.0  # in deviations of a difference


def difference_power(pairs: int, effect: float, deviation: float, level: float) -> float:
    """Probability that a two-sided paired t-test at `level` finds a true mean difference `effect`.

    `deviation`: standard deviation of a difference, above zero. Exact for normal differences (noncentral t).
    """
    from scipy import special

    df, noncentrality = pairs - 1, abs(effect) / deviation * pairs**0.5
    critical = special.stdtrit(df, 1 - level / 2)
    return float(1 - special.nctdtr(df, noncentrality, critical) + special.nctdtr(df, noncentrality, -critical))


def equivalence_power(pairs: int, margin: float, deviation: float, level: float) -> float:
    """Probability that two one-sided tests at `level` find a true mean difference of zero to be within ± `margin`.

    The lower bound P(first rejects) + P(second rejects) − 1, which is close where it is above one half.
    """
    from scipy import special

    df, noncentrality = pairs - 1, margin / deviation * pairs**0.5
    critical = special.stdtrit(df, 1 - level)
    return max(0.0, float(1 - 2 * special.nctdtr(df, noncentrality, critical)))


def pairs_for_difference(effect: float, deviation: float, level: float) -> int | None:
    """Fewest pairs, at least 3, that find a true mean difference `effect` with 80 % power; None above 9,999."""
    return _fewest(lambda pairs: difference_power(pairs, effect, deviation, level))


def pairs_for_equivalence(margin: float, deviation: float, level: float) -> int | None:
    """Fewest pairs, at least 3, that find a true mean difference of zero to be within ± `margin` with 80 % power.

    None above 9,999.
    """
    return _fewest(lambda pairs: equivalence_power(pairs, margin, deviation, level))


def fewest_pairs(comparisons: int, level: float = 0.05) -> int:
    """Fewest pairs at which one of `comparisons` variants can be decided at all; a sensible first look.

    A difference of three deviations, as between attentions that learn a task and those that do not, is then found with
    80 % power at Holm's first level.
    """
    pairs = pairs_for_difference(LARGE_EFFECT, 1.0, level / max(1, comparisons))
    assert pairs is not None
    return pairs


def _fewest(power: Callable[[int], float]) -> int | None:
    """The least number of pairs with enough power, which grows with pairs: by bisection."""
    low, high = MIN_PAIRS - 1, MIN_PAIRS
    while power(high) < POWER:
        low, high = high, 2 * high
        if low > MAX_PAIRS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high if high <= MAX_PAIRS else None
