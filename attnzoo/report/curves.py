"""Measures of a whole learning curve: a list of (step, score), one per evaluation."""

from collections.abc import Sequence
from itertools import pairwise

Curve = Sequence[tuple[float, float]]  # in increasing order of steps


def area_under_curve(curve: Curve) -> float | None:
    """Mean score from the first to the last evaluation (trapezoidal rule), in units of the score; None if empty.

    Comparable only between curves that are evaluated at the same steps. It varies less between seeds than the last
    score.
    """
    if len(curve) < 2:
        return curve[0][1] if curve else None
    area = sum((right - left) * (first + second) / 2 for (left, first), (right, second) in pairwise(curve))
    return area / (curve[-1][0] - curve[0][0])


def steps_to_score(curve: Curve, score: float) -> float | None:
    """Steps until the curve first reaches `score`, between two evaluations by linear interpolation; None if never."""
    previous: tuple[float, float] | None = None
    for step, value in curve:
        if value >= score:
            if previous is None:
                return step
            left, below = previous
            return left + (step - left) * (score - below) / (value - below)
        if value < score:  # not NaN
            previous = (step, value)
    return None
