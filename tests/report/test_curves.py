"""Measures of a learning curve."""

import math

import pytest

from attnzoo.report.curves import area_under_curve, steps_to_score


def test_area_is_the_mean_over_steps() -> None:
    assert area_under_curve([(0, 0.0), (100, 1.0)]) == 0.5
    assert area_under_curve([(100, 0.0), (200, 0.4), (500, 0.4)]) == pytest.approx((100 * 0.2 + 300 * 0.4) / 400)
    assert area_under_curve([(100, 0.3)]) == 0.3
    assert area_under_curve([]) is None


def test_steps_to_score() -> None:
    curve = [(100, 0.1), (200, 0.3), (300, 0.2), (400, 0.5)]
    assert steps_to_score(curve, 0.2) == pytest.approx(150)
    assert steps_to_score(curve, 0.4) == pytest.approx(300 + 100 * 2 / 3)
    assert steps_to_score(curve, 0.1) == 100
    assert steps_to_score(curve, 0.6) is None
    assert steps_to_score([], 0.6) is None


def test_evaluations_without_a_score_are_passed_over() -> None:
    assert steps_to_score([(100, math.nan), (200, 0.3)], 0.2) == 200
    assert steps_to_score([(100, 0.1), (200, math.nan), (300, 0.3)], 0.2) == pytest.approx(200)
