"""The table of variants against their baseline."""

import pytest

from attnzoo.report.pairs import Scores, pair_variants
from attnzoo.report.table import paired_cells
from attnzoo.rundir.metrics import PRIMARY_METRICS

AP = PRIMARY_METRICS["detection"]


def scores(name: str, *finals: float) -> Scores:
    curves = {seed: [(10, final / 2), (20, final)] for seed, final in enumerate(finals)}
    return Scores(name, dict(enumerate(finals)), curves)


BASE = scores("base", 0.20, 0.22, 0.21, 0.23)


def test_differences_are_by_seed_and_positive_where_the_variant_is_better():
    better = Scores("better", {3: 0.33, 1: 0.32, 9: 0.9}, {seed: [(20, 0.3)] for seed in (3, 1, 9)})
    (row,) = pair_variants([better], BASE, AP, is_given=True).rows
    assert row.final.pairs == 2
    assert row.final.mean == pytest.approx(0.1)


def test_verdicts_and_sentences():
    better = scores("better", 0.301, 0.319, 0.312, 0.329)
    same = scores("same", 0.201, 0.219, 0.211, 0.230)
    unclear = scores("unclear", 0.1, 0.4, 0.1, 0.3)
    table = pair_variants([better, same, unclear], BASE, AP, is_given=True, margin=0.05)
    assert [row.final.verdict for row in table.rows] == ["better", "equivalent", "undecided"]
    first, second, third = table.sentences()
    assert first.startswith("better is better than base: +0.100 AP, 95 % interval +0.0")
    assert first.endswith(", 4 pairs.")
    assert second.startswith("same is equivalent to base within ± 0.05 AP: ")
    assert third.startswith("unclear against base is undecided: about ")


def test_copy_of_the_baseline_does_not_count_among_the_variants():
    """Holm's correction is for those that are judged."""
    variant, copy = scores("variant", 0.301, 0.319, 0.312, 0.329), scores("base-aa", 0.21, 0.21, 0.22, 0.22)
    alone = pair_variants([variant], BASE, AP, is_given=True).rows[0]
    row, aa = pair_variants([variant, copy], BASE, AP, is_given=True, aa="base-aa").rows
    assert row == alone
    assert aa.is_aa
    assert "a copy of base" in pair_variants([copy], BASE, AP, is_given=True, aa="base-aa").sentences()[0]


def test_area_steps_and_correlation():
    variant = scores("variant", 0.30, 0.32, 0.31, 0.33)
    table = pair_variants([variant], BASE, AP, is_given=True)
    (row,) = table.rows
    assert row.area.mean == pytest.approx(0.075)  # mean of half the score and the score, of a difference of 0.1
    assert row.correlation == pytest.approx(1.0)
    assert table.target == pytest.approx(0.9 * 0.215)
    assert table.steps_to_target["variant"] == pytest.approx(12.2, abs=0.5)
    assert table.steps_to_target["base"] == pytest.approx(18, abs=0.5)


def test_variant_without_common_seeds():
    other = Scores("other", {7: 0.3}, {7: [(20, 0.3)]})
    table = pair_variants([other, scores("empty")], BASE, AP, is_given=False)
    assert [row.final.pairs for row in table.rows] == [0, 0]
    assert table.sentences() == [f"{name}: no seed in common with base yet." for name in ("other", "empty")]
    assert table.steps_to_target["empty"] is None


def test_steps_to_a_given_score():
    table = pair_variants([scores("variant", 0.30, 0.32)], BASE, AP, is_given=True, target=0.22)
    assert table.target == 0.22
    assert table.steps_to_target["variant"] == pytest.approx(14.2, abs=0.1)  # between 0.15 and 0.30, 0.16 and 0.32
    assert not table.target_is_relative


def test_all_planned_pairs_are_run():
    """Then nothing more is promised: raising `at_most` after looking would give the error rate away."""
    unclear = scores("unclear", 0.1, 0.4, 0.1, 0.3)
    (row,) = pair_variants([unclear], BASE, AP, is_given=True, looks=(2, 4)).rows
    assert row.final.words == "undecided after all planned pairs"
    (row,) = pair_variants([unclear], BASE, AP, is_given=True, looks=(2, 4, 6)).rows
    assert "more pair" in row.final.words


def test_pairs_made_after_a_verdict_are_counted_and_not_used():
    """A verdict stood beside the interval of all pairs, which contradicted it."""
    variant, base = scores("variant", 0.301, 0.299, 0.3, 0.302, 0.1, 0.05), scores("base", *[0.2] * 6)
    table = pair_variants([variant], base, AP, is_given=True, looks=(4, 6))
    (sentence,) = table.sentences()
    assert sentence.startswith("variant is better than base: +0.100 AP, 95 % interval +0.09")
    assert sentence.endswith(", 4 pairs; 2 made after this verdict are not used.")
    assert paired_cells(table)[1][1][3] == "4 of 6"
    (row,) = table.rows
    assert row.seeds == [0, 1, 2, 3]
    assert row.area.pairs == 4


def test_beyond_the_margin_more_pairs_are_those_that_find_the_difference():
    variant = scores("variant", 0.23, 0.30, 0.22, 0.29)
    with_margin, without = (
        pair_variants([variant], BASE, AP, is_given=True, margin=margin).rows[0].final for margin in (0.02, None)
    )
    assert with_margin.verdict == "undecided"
    assert with_margin.more_pairs == without.more_pairs
