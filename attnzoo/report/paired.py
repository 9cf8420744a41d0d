"""Decides from paired differences whether variants are better than their baseline, worse, or equivalent to it.

The rule and its sources: docs/statistics.md. Everything is a function of lists of numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from attnzoo.report.power import MAX_PAIRS, fewest_pairs, pairs_for_difference, pairs_for_equivalence
from attnzoo.report.resampling import bca_interval, sign_flip_p
from attnzoo.report.sequential import nominal_levels

Interval = tuple[float, float]
Verdict = Literal["better", "worse", "equivalent", "undecided"]

LEVEL = 0.05
BCA_PAIRS = 20  # with fewer, the bootstrap's intervals are too narrow


@dataclass(frozen=True)
class PairedResult:
    """What the differences of one variant to the baseline say; positive differences are better.

    All but `invalid` and `later` describe the finite differences; None where they are too few or all equal.
    """

    pairs: int  # finite differences
    later: int  # made after the look at which a sequential comparison decided; they are not used
    invalid: int  # NaN or infinite ones; from the first on, nothing more is decided
    mean: float | None
    deviation: float | None  # standard deviation of a difference; from two pairs on
    interval: Interval | None  # Student's t, in a sequential comparison repeated; None if all are equal
    bca: Interval | None  # BCa bootstrap; from 20 pairs on
    p_value: float | None  # two-sided paired t-test, of this variant alone
    holm_p: float | None  # the same, adjusted for all variants; not in a sequential comparison
    equivalence_p: float | None  # of this variant alone: the least level whose interval lies within ± margin
    sign_flip_p: float | None  # two-sided sign-flip test, of this variant alone
    probability_better: float | None  # share of pairs in which the variant is better; ties count half
    verdict: Verdict
    more_pairs: int | None  # if undecided: about how many more decide; None above 9,999, 0 after the last planned look

    @property
    def words(self) -> str:
        """The verdict, with what to do if it is undecided."""
        if self.verdict != "undecided":
            return self.verdict
        if self.invalid:
            return f"undecided: {self.invalid} {_plural(self.invalid)} without a finite difference"
        if self.mean == 0 and self.deviation == 0:
            return f"undecided: equal in all {self.pairs} pairs, so the settings may have no effect"
        if self.more_pairs == 0:
            return "undecided after all planned pairs"
        if self.more_pairs is None:
            return f"undecided: over {MAX_PAIRS:,} more pairs"
        about = "about" if self.pairs > 1 else "at least"  # one pair has no deviation
        return f"undecided: {about} {self.more_pairs:,} more {_plural(self.more_pairs)}"


def paired_differences(
    variant: Mapping[int, float], baseline: Mapping[int, float], higher_is_better: bool = True
) -> list[float]:
    """Differences of scores over the common seeds, in the order of the variant's, positive where the variant is better.

    A difference within rounding error of the scores is 0.
    """
    sign = 1 if higher_is_better else -1
    pairs = [(variant[seed], baseline[seed]) for seed in variant if seed in baseline]
    return [0.0 if math.isclose(ours, theirs, rel_tol=1e-12) else sign * (ours - theirs) for ours, theirs in pairs]


def compare_pairs(
    differences: Sequence[Sequence[float]],
    margin: float | None = None,
    level: float = LEVEL,
    looks: Sequence[int] | None = None,
) -> list[PairedResult]:
    """One result per variant, from its paired differences to the baseline (positive: better).

    `margin`: differences within ± margin do not matter; None: `equivalent` is never a verdict. `level`: probability of
    at least one false `better` or `worse` among the variants, and of at least one false `equivalent`; intervals have
    coverage 1 − `level`. `looks`: the planned numbers of pairs of a sequential comparison (`planned_looks`), whose
    differences must be in the order in which the runs were made. Verdicts use the looks that the data reached and, once
    made, stay: a result is that of the look that decided. Raises ValueError for a margin that is not positive.
    """
    if margin is not None and not 0 < margin < math.inf:
        raise ValueError(f"margin: expected a positive number, got {margin}")
    table = [_Sample.of(values) for values in differences]
    claims = _Claims(len(table), level)
    if looks is None:
        claims.update([None if sample.invalid else sample for sample in table], margin, (0,), 0)
    else:
        for index, pairs in enumerate(looks):
            reached = [_Sample.of(values[:pairs]) if len(values) >= pairs else None for values in differences]
            usable = [None if sample and sample.invalid else sample for sample in reached]
            claims.update(usable, margin, looks, index)
        table = [_Sample.of(values[: claims.pairs.get(index)]) for index, values in enumerate(differences)]
    p_values = [_two_sided(sample.smaller_p) for sample in table]
    holm = [None] * len(table) if looks else _holm(p_values)
    results = []
    for index, sample in enumerate(table):
        verdict = claims.verdicts.get(index, "undecided")
        results.append(
            PairedResult(
                pairs=sample.n,
                later=len(differences[index]) - sample.n - sample.invalid,
                invalid=sample.invalid,
                mean=sample.mean,
                deviation=sample.deviation,
                interval=sample.interval(_interval_level(sample.n + sample.invalid, level, looks)),
                bca=bca_interval(sample.values, level) if sample.n >= BCA_PAIRS else None,
                p_value=p_values[index],
                holm_p=holm[index],
                equivalence_p=_two_sided(sample.larger_p(margin)) if margin else None,
                sign_flip_p=sign_flip_p(sample.values) if sample.n else None,
                probability_better=fmean((value > 0) + (value == 0) / 2 for value in sample.values)
                if sample.n
                else None,
                verdict=verdict,
                more_pairs=None if verdict != "undecided" else _more_pairs(sample, margin, claims, looks),
            )
        )
    return results


@dataclass(frozen=True)
class _Sample:
    """The finite differences of one variant, and its t-tests."""

    values: tuple[float, ...]
    invalid: int
    mean: float | None
    deviation: float | None

    @classmethod
    def of(cls, differences: Sequence[float]) -> "_Sample":
        values = tuple(float(value) for value in differences if math.isfinite(value))
        mean = fmean(values) if values else None
        deviation = stdev(values) if len(values) > 1 else None
        if mean is not None and deviation is not None and deviation <= 1e-9 * abs(mean):
            deviation = 0.0  # equal but for rounding
        return cls(values, len(differences) - len(values), mean, deviation)

    @property
    def n(self) -> int:
        return len(self.values)

    def upper_p(self, bound: float) -> float | None:
        """p-value of the one-sided t-test whose alternative is a true mean above `bound`.

        t is undefined where all differences are equal, as may happen with coarse scores; then it is that of the
        sign-flip test.
        """
        if self.mean is None or self.deviation is None:
            return None
        if self.deviation == 0:
            return 0.5**self.n if self.mean > bound else 1.0
        from scipy import special

        return float(special.stdtr(self.n - 1, (bound - self.mean) / self.deviation * self.n**0.5))

    def lower_p(self, bound: float) -> float | None:
        """The same for a true mean below `bound`."""
        return self._negated().upper_p(-bound)

    def _negated(self) -> "_Sample":
        mean = None if self.mean is None else -self.mean
        return _Sample(self.values, self.invalid, mean, self.deviation)

    @property
    def smaller_p(self) -> float | None:
        """The smaller of the two one-sided p-values of a mean that is not zero."""
        upper, lower = self.upper_p(0), self.lower_p(0)
        return None if upper is None or lower is None else min(upper, lower)

    def larger_p(self, margin: float) -> float | None:
        """The larger of the p-values of the two one-sided tests of a mean within ± margin."""
        above, below = self.upper_p(-margin), self.lower_p(margin)
        return None if above is None or below is None else max(above, below)

    def interval(self, one_sided_level: float) -> Interval | None:
        if self.mean is None or not self.deviation:
            return None
        from scipy import special

        half = float(special.stdtrit(self.n - 1, 1 - one_sided_level)) * self.deviation / self.n**0.5
        return self.mean - half, self.mean + half


class _Claims:
    """Holm's procedure for each of the two claims, `better or worse` and `equivalent`, over one or more looks.

    Both rest on one interval, of the level that Holm's procedure asks: it excludes zero, or it lies within the margin.
    A claim that is made stays, and the others are then tested as if its variant had never been there.
    """

    def __init__(self, num_variants: int, level: float) -> None:
        self.level = level
        self.verdicts: dict[int, Verdict] = {}
        self.pairs: dict[int, int] = {}  # at which each verdict of a sequential comparison was made
        self.not_different = set(range(num_variants))  # variants whose difference is not shown
        self.not_equivalent = set(range(num_variants))

    def update(self, samples: Sequence[_Sample | None], margin: float | None, looks: Sequence[int], look: int) -> None:
        """Test the data of one look; None: the variant has no usable data at it."""
        if margin is not None:
            p_values = [sample.larger_p(margin) if sample else None for sample in samples]
            for index in _step_down(p_values, self.not_equivalent, self.level / 2, looks, look):
                self._decide(index, "equivalent", looks[look])
        p_values = [sample.smaller_p if sample else None for sample in samples]
        for index in _step_down(p_values, self.not_different, self.level / 2, looks, look):
            sample = samples[index]
            assert sample is not None
            assert sample.mean is not None
            self._decide(index, "better" if sample.mean > 0 else "worse", looks[look])

    def _decide(self, index: int, verdict: Verdict, pairs: int) -> None:
        if index not in self.verdicts:
            self.verdicts[index], self.pairs[index] = verdict, pairs


def _step_down(
    p_values: Sequence[float | None], remaining: set[int], level: float, looks: Sequence[int], look: int
) -> list[int]:
    """Variants that Holm's procedure rejects at this look, removed from `remaining`; p-values are one-sided."""
    rejected = []
    for p_value, index in sorted((p, index) for index in remaining if (p := p_values[index]) is not None):
        if p_value > nominal_levels(looks, level / len(remaining))[look]:
            break
        remaining.remove(index)
        rejected.append(index)
    return rejected


def _two_sided(one_sided_p: float | None) -> float | None:
    return None if one_sided_p is None else min(1.0, 2 * one_sided_p)


def _holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values. Missing ones count as 1."""
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p_value, index) in enumerate(sorted((p, i) for i, p in enumerate(p_values) if p is not None)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_value))
        adjusted[index] = largest
    return adjusted


def _interval_level(pairs: int, level: float, looks: Sequence[int] | None) -> float:
    """One-sided level of the interval; in a sequential comparison that of the last look reached."""
    if looks is None:
        return level / 2
    reached = sum(look <= pairs for look in looks)
    return nominal_levels(looks, level / 2)[max(0, reached - 1)]


def _more_pairs(sample: _Sample, margin: float | None, claims: _Claims, looks: Sequence[int] | None) -> int | None:
    """About how many more pairs decide with 80 % power, at the level that Holm's procedure asks now."""
    level, equivalence_level = (
        claims.level / max(1, len(untold)) for untold in (claims.not_different, claims.not_equivalent)
    )
    if sample.mean is None or sample.deviation is None:
        total: int | None = fewest_pairs(len(claims.not_different), claims.level)
    elif sample.deviation == 0:
        total = _sign_flip_pairs(sample.mean, margin, level, equivalence_level)
    else:
        total = None
        if margin is not None:  # enough to tell zero from the margin, whichever is true
            needed = (
                pairs_for_difference(margin, sample.deviation, level),
                pairs_for_equivalence(margin, sample.deviation, equivalence_level / 2),
            )
            total = None if None in needed else max(number for number in needed if number is not None)
        if margin is None or abs(sample.mean) >= margin or (total is not None and total <= sample.n):
            total = pairs_for_difference(sample.mean, sample.deviation, level)
    if looks and sample.n >= looks[-1]:
        return 0
    if total is None:
        return None
    first_look = looks[0] if looks else 0
    return max(1, total - sample.n, first_look - sample.n)


def _sign_flip_pairs(mean: float, margin: float | None, level: float, equivalence_level: float) -> int | None:
    """Pairs that decide if all differences remain equal."""
    if margin is not None and abs(mean) < margin:
        return math.ceil(1 - math.log2(equivalence_level))
    return math.ceil(1 - math.log2(level)) if mean else None


def _plural(number: int) -> str:
    return "pair" if number == 1 else "pairs"
