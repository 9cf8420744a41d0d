"""Power of the paired t-test, against simulation and textbook values."""

import numpy as np
import pytest
from scipy import stats

from attnzoo.report import power


@pytest.mark.parametrize(("effect", "pairs"), [(0.5, 34), (0.8, 15), (1.0, 10)])
def test_pairs_are_those_of_the_textbook(effect: float, pairs: int) -> None:
    """G*Power: matched pairs, two-tailed, α 0.05, power 0.8."""
    assert power.pairs_for_difference(effect, 1.0, 0.05) == pairs
    assert power.pairs_for_difference(-2 * effect, 2.0, 0.05) == pairs


def test_power_equals_simulation() -> None:
    x = np.random.default_rng(0).standard_normal((40_000, 8))
    found = stats.ttest_1samp(x + 1.0, 0, axis=1).pvalue <= 0.05
    assert power.difference_power(8, 1.0, 1.0, 0.05) == pytest.approx(found.mean(), abs=0.01)
    above = stats.ttest_1samp(x, -1.2, axis=1, alternative="greater").pvalue
    below = stats.ttest_1samp(x, 1.2, axis=1, alternative="less").pvalue
    equivalent = np.maximum(above, below) <= 0.05
    assert power.equivalence_power(8, 1.2, 1.0, 0.05) == pytest.approx(equivalent.mean(), abs=0.01)


def test_pairs_are_the_fewest() -> None:
    for effect in (0.05, 0.3, 1.5):
        pairs = power.pairs_for_difference(effect, 1.0, 0.01)
        assert (
            power.difference_power(pairs - 1, effect, 1.0, 0.01)
            < 0.8
            <= power.difference_power(pairs, effect, 1.0, 0.01)
        )
        pairs = power.pairs_for_equivalence(effect, 1.0, 0.01)
        assert power.equivalence_power(pairs - 1, effect, 1.0, 0.01) < 0.8
        assert power.equivalence_power(pairs, effect, 1.0, 0.01) >= 0.8


def test_limits() -> None:
    assert power.pairs_for_difference(0.0, 1.0, 0.05) is None
    assert power.pairs_for_difference(0.001, 1.0, 0.05) is None
    assert power.pairs_for_difference(1e6, 1.0, 0.05) == 3
    assert power.pairs_for_equivalence(1e6, 1.0, 0.05) == 3


def test_fewest_pairs_grow_with_the_comparisons() -> None:
    numbers = [power.fewest_pairs(comparisons) for comparisons in (1, 3, 10, 50)]
    assert numbers == sorted(numbers)
    assert (power.fewest_pairs(0), numbers[0], numbers[1]) == (4, 4, 5)
