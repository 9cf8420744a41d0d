"""Levels of repeated looks."""

import numpy as np
import pytest
from scipy import stats

from attnzoo.report.sequential import nominal_levels, planned_looks


def test_planned_looks() -> None:
    assert planned_looks(4, 6) == (4, 5, 6)
    assert planned_looks(4, 9, 3) == (4, 7, 9)
    assert planned_looks(4, 10, 3) == (4, 7, 10)
    assert planned_looks(5, 5, 2) == (5,)
    for arguments in ((1, 5, 1), (6, 5, 1), (4, 5, 0)):
        with pytest.raises(ValueError, match="at_least"):
            planned_looks(*arguments)


def test_one_look_needs_no_correction() -> None:
    assert nominal_levels((7,), 0.05) == [0.05]


@pytest.mark.parametrize("level", [0.05, 0.025, 0.005])
def test_all_looks_together_have_the_level(level: float) -> None:
    looks = planned_looks(3, 12, 3)
    values = np.random.default_rng(5).standard_normal((100_000, 12))
    p_values = [stats.ttest_1samp(values[:, :pairs], 0, axis=1, alternative="greater").pvalue for pairs in looks]
    rejected = np.any([p <= bound for p, bound in zip(p_values, nominal_levels(looks, level), strict=True)], axis=0)
    assert rejected.mean() == pytest.approx(level, abs=4 * (level / 100_000) ** 0.5)


def test_levels_grow_with_the_looks_and_stay_below_the_whole() -> None:
    levels = nominal_levels(planned_looks(4, 20), 0.025)
    assert levels == sorted(levels)
    assert 0 < levels[0] < levels[-1] < 0.025
    assert np.std(nominal_levels(planned_looks(4, 20), 0.025, exponent=0.5)) < 1e-12  # Pocock's are equal
