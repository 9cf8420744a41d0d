"""Verdicts from paired differences."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from attnzoo.report.paired import compare_pairs, paired_differences
from attnzoo.report.sequential import nominal_levels, planned_looks

NOISE = [0.3, -0.5, 0.1, 0.4, -0.3]  # mean 0


def shifted(by: float, scale: float = 1.0) -> list[float]:
    return [by + scale * value for value in NOISE]


def test_t_test_and_interval_equal_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for pairs in (2, 3, 7, 25):
        variant, baseline = rng.normal(0.4, 1, pairs), rng.normal(0, 1, pairs)
        (result,) = compare_pairs([variant - baseline])
        expected = stats.ttest_rel(variant, baseline)
        assert result.p_value == pytest.approx(expected.pvalue, rel=1e-9)
        assert result.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-9)
        assert result.deviation == pytest.approx(np.std(variant - baseline, ddof=1))
        assert (result.bca is not None) == (pairs >= 20)


def test_equivalence_is_two_one_sided_tests() -> None:
    differences = [0.03, -0.02, 0.05, 0.01, 0.02, -0.01]
    (result,) = compare_pairs([differences], margin=0.05)
    above = stats.ttest_1samp(differences, -0.05, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, 0.05, alternative="less").pvalue
    assert result.equivalence_p == pytest.approx(2 * max(above, below), rel=1e-9)
    assert -0.05 < result.interval[0] < result.interval[1] < 0.05
    assert result.verdict == "equivalent"
    assert compare_pairs([differences])[0].equivalence_p is None


def test_equivalent_means_that_the_interval_lies_within_the_margin() -> None:
    (low, high) = compare_pairs([shifted(0.1)])[0].interval
    assert compare_pairs([shifted(0.1)], margin=high * 1.01)[0].verdict == "equivalent"
    assert compare_pairs([shifted(0.1)], margin=high * 0.99)[0].verdict == "undecided"
    assert abs(low) < high


def test_holm_by_hand() -> None:
    table = [shifted(0.1), shifted(0.5), shifted(-2.0), shifted(0.47)]
    p = [stats.ttest_1samp(row, 0).pvalue for row in table]
    results = compare_pairs(table)
    # In order of p: -2.0, 0.5, 0.47, 0.1.
    expected = {2: 4 * p[2], 1: 3 * p[1], 3: max(3 * p[1], 2 * p[3]), 0: max(2 * p[3], p[0])}
    assert [result.holm_p for result in results] == pytest.approx([expected[index] for index in range(4)])
    assert [result.verdict == "undecided" for result in results] == [result.holm_p > 0.05 for result in results]
    assert results[2].verdict == "worse"


def test_holm_counts_variants_without_data() -> None:
    single = compare_pairs([shifted(0.5)])[0]
    assert single.verdict == "better"
    with_empty = compare_pairs([shifted(0.5), [], [0.1]])
    assert with_empty[0].holm_p == pytest.approx(3 * single.p_value)
    assert [result.verdict for result in with_empty] == ["undecided"] * 3


def test_a_difference_inside_the_margin_is_equivalent_even_if_it_is_not_zero() -> None:
    assert compare_pairs([shifted(0.5, 0.1)])[0].verdict == "better"
    assert compare_pairs([shifted(0.5, 0.1)], margin=1.0)[0].verdict == "equivalent"
    assert compare_pairs([shifted(0.5, 0.1)], margin=0.4)[0].verdict == "better"


def test_the_sign_flip_test_does_not_veto() -> None:
    (result,) = compare_pairs([[1.0, 1.1, 0.9]])
    assert result.sign_flip_p == 0.25
    assert result.verdict == "better"


@pytest.mark.parametrize("margin", [0.0, -0.1, math.nan, math.inf])
def test_margin_must_be_positive(margin: float) -> None:
    with pytest.raises(ValueError, match="margin"):
        compare_pairs([NOISE], margin=margin)


def test_no_pair_and_one_pair() -> None:
    empty, one = compare_pairs([[], [0.2]])
    assert (empty.pairs, empty.mean, empty.sign_flip_p, empty.probability_better) == (0, None, None, None)
    assert (one.mean, one.deviation, one.interval, one.p_value, one.holm_p) == (0.2, None, None, None, None)
    assert (one.sign_flip_p, one.probability_better) == (1.0, 1.0)
    assert empty.more_pairs == one.more_pairs + 1
    assert one.words == f"undecided: at least {one.more_pairs} more pairs"


def test_equal_differences_have_the_p_value_of_the_sign_flip_test() -> None:
    """t is undefined, and 0.3 - 0.2, 0.4 - 0.3 differ by rounding alone."""
    six = compare_pairs([[0.3 - 0.2, 0.4 - 0.3, 0.5 - 0.4, 0.6 - 0.5, 0.7 - 0.6, 0.8 - 0.7]])[0]
    assert (six.p_value, six.interval, six.verdict) == (2 / 2**6, None, "better")
    five = compare_pairs([[-0.1] * 5])[0]
    assert (five.p_value, five.words) == (2 / 2**5, "undecided: about 1 more pair")
    assert compare_pairs([[-0.1] * 5], margin=0.2)[0].words == "undecided: about 1 more pair"
    assert compare_pairs([[-0.1] * 6], margin=0.2)[0].verdict == "equivalent"


def test_equal_scores_are_never_different() -> None:
    (same,) = compare_pairs([[0.0] * 8])
    assert (same.mean, same.p_value, same.sign_flip_p, same.probability_better) == (0.0, 1.0, 1.0, 0.5)
    assert same.words == f"undecided: equal in all {same.pairs} pairs, so the settings may have no effect"
    assert compare_pairs([[0.0] * 8], margin=0.01)[0].verdict == "equivalent"


def test_runs_without_a_score_leave_a_variant_undecided() -> None:
    """Leaving failed runs out would flatter the variant."""
    differences = [5.0, 5.1, math.nan, 4.9, 5.05]
    for looks in (None, (3, 5)):
        result, other = compare_pairs([differences, shifted(9.0, 0.1)], looks=looks)
        assert (result.pairs, result.invalid) == (4, 1)
        assert result.mean == pytest.approx(5.0125)
        assert result.words == "undecided: 1 pair without a finite difference"
        assert other.verdict == "better"


def test_more_pairs_grow_with_what_is_asked() -> None:
    (easy,), (hard,) = compare_pairs([shifted(0.3)]), compare_pairs([shifted(0.05)])
    assert 1 <= easy.more_pairs < hard.more_pairs
    (loose,), (tight,) = compare_pairs([NOISE], margin=0.3), compare_pairs([NOISE], margin=0.1)
    assert 1 <= loose.more_pairs < tight.more_pairs
    assert compare_pairs([shifted(0.3)] * 4)[0].more_pairs > easy.more_pairs


def test_paired_differences_of_common_seeds() -> None:
    variant, baseline = {3: 0.5, 1: 0.1 + 0.2, 7: 0.4}, {1: 0.3, 3: 0.4, 2: 0.9}
    assert paired_differences(variant, baseline) == pytest.approx([0.1, 0.0])
    assert paired_differences(variant, baseline)[1] == 0.0
    assert paired_differences(variant, baseline, higher_is_better=False)[0] == pytest.approx(-0.1)
    assert math.isnan(paired_differences({0: math.nan}, {0: 0.5})[0])


def test_one_look_is_an_ordinary_comparison() -> None:
    table = [shifted(0.1), shifted(0.5), shifted(-2.0)]
    for ordinary, sequential in zip(compare_pairs(table), compare_pairs(table, looks=(5,)), strict=True):
        assert ordinary.verdict == sequential.verdict
        assert ordinary.interval == sequential.interval


def test_before_the_first_look_nothing_is_decided() -> None:
    table = [shifted(50.0)]
    assert compare_pairs(table)[0].verdict == "better"
    assert compare_pairs(table, looks=(15, 20))[0].words == "undecided: about 10 more pairs"


def test_a_look_asks_for_a_smaller_p_value_and_its_interval_is_wider() -> None:
    looks = planned_looks(5, 8)
    by = next(by for by in np.arange(0.1, 2, 0.01) if stats.ttest_1samp(shifted(by), 0).pvalue < 0.04)
    (plain,), (sequential,) = compare_pairs([shifted(by)]), compare_pairs([shifted(by)], looks=looks)
    assert (plain.verdict, sequential.verdict) == ("better", "undecided")
    assert sequential.interval[0] < plain.interval[0] < plain.interval[1] < sequential.interval[1]
    expected = stats.t.interval(1 - 2 * nominal_levels(looks, 0.025)[0], 4, by, stats.sem(NOISE))
    assert sequential.interval == pytest.approx(expected)


def test_a_verdict_of_an_earlier_look_stays() -> None:
    looks = (5, 10)
    (decided,) = compare_pairs([shifted(3.0, 0.1)], looks=looks)
    assert (decided.verdict, decided.pairs, decided.later) == ("better", 5, 0)
    for later in (4, 5):
        (result,) = compare_pairs([shifted(3.0, 0.1) + [-9.0] * later], looks=looks)
        assert result == replace(decided, later=later), "no verdict beside an interval that contradicts it"


def test_a_variant_decided_early_leaves_its_share_to_the_others() -> None:
    looks = (5, 10)
    levels = [nominal_levels(looks, 0.05 / 2 / left)[1] for left in (1, 2)]
    assert levels[1] < levels[0]
    candidates = (NOISE[::-1] + [value + by for value in NOISE] for by in np.arange(0, 3, 0.01))
    second = next(row for row in candidates if levels[1] < stats.ttest_1samp(row, 0).pvalue / 2 < levels[0])
    assert compare_pairs([shifted(9.0, 0.1), second], looks=looks)[1].verdict == "better"
    assert compare_pairs([NOISE, second], looks=looks)[1].verdict == "undecided"


def test_importing_loads_neither_scipy_nor_torch() -> None:
    code = (
        "import sys; from attnzoo.report import curves, paired, power, resampling, sequential;"
        "assert not {'scipy', 'numpy', 'torch'} & set(sys.modules);"
        "paired.compare_pairs([[0.1, 0.2, 0.15]] * 2); assert 'scipy.stats' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
