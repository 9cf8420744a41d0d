"""Sign-flip test and BCa interval, against scipy.stats."""

import numpy as np
import pytest
from scipy import stats

from attnzoo.report.resampling import EXACT_PAIRS, bca_interval, sign_flip_p


def mean_of(values: np.ndarray, axis: int) -> np.ndarray:
    return np.mean(values, axis=axis)


@pytest.mark.parametrize("pairs", [2, 3, 6, 11])
def test_sign_flip_equals_scipys_exact_test(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    for shift in (0, 1):
        differences = rng.normal(shift, 1, pairs)
        expected = stats.permutation_test(
            (differences,), mean_of, permutation_type="samples", n_resamples=np.inf, vectorized=True
        )
        # scipy doubles the smaller tail, which for a symmetric distribution is the same
        assert sign_flip_p(differences) == pytest.approx(min(1.0, expected.pvalue), rel=1e-12)


def test_sign_flip_counts_ties() -> None:
    assert sign_flip_p([0.1, 0.2, 0.3]) == 2 / 2**3
    assert sign_flip_p([0.1] * 20) == 2 / 2**20
    assert sign_flip_p([0.1, 0.2, -0.3]) == 1.0
    assert sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p([0.4]) == 1.0
    assert sign_flip_p([0.0, 0.1, 0.1]) == 0.5


def test_sign_flip_of_many_pairs_is_sampled() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.normal(0.4, 1, EXACT_PAIRS), rng.normal(0.2, 1, 60)
    assert sign_flip_p(few) == pytest.approx(stats.ttest_1samp(few, 0).pvalue, rel=0.3)
    assert sign_flip_p(many) == sign_flip_p(many)
    assert sign_flip_p(many) == pytest.approx(stats.ttest_1samp(many, 0).pvalue, rel=0.3)
    assert sign_flip_p(np.ones(50)) == 1 / 100_001


def test_bca_equals_scipys() -> None:
    rng = np.random.default_rng(1)
    for values in (rng.normal(0, 1, 20), rng.exponential(1, 30)):
        expected = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, rng=np.random.default_rng(2))
        low, high = bca_interval(values)
        tolerance = 0.03 * (high - low)
        assert low == pytest.approx(expected.confidence_interval.low, abs=tolerance)
        assert high == pytest.approx(expected.confidence_interval.high, abs=tolerance)


def test_bca_of_equal_values_is_undefined() -> None:
    assert bca_interval([0.1] * 20) is None
    assert bca_interval([0.1]) is None
