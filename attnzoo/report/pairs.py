"""The variants of a comparison against its baseline: differences by seed, and what they decide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import correlation, median

from attnzoo.report.curves import Curve, area_under_curve, steps_to_score
from attnzoo.report.paired import PairedResult, compare_pairs, paired_differences
from attnzoo.rundir.metrics import Metric

TARGET = 0.9  # of the baseline's mean score at the end


@dataclass(frozen=True)
class Scores:
    """The finished runs of a variant, by seed: the score at the end, and that of every evaluation."""

    name: str
    final: Mapping[int, float]
    curves: Mapping[int, Curve]


@dataclass(frozen=True)
class PairedRow:
    """A variant and its baseline, over the seeds that both have finished.

    `seeds`: those of the result, in a sequential comparison up to the look that decided. `final`: of the scores at the
    end, which decide. `area`: of the area under the learning curve, by itself. `correlation`: of the two variants'
    scores over seeds, from three pairs on; pairing pays where it is high. `is_aa`: whether the variant is a copy of the
    baseline, which is not judged.
    """

    name: str
    seeds: list[int]
    final: PairedResult
    area: PairedResult
    correlation: float | None
    is_aa: bool


@dataclass(frozen=True)
class PairedTable:
    """All variants against `baseline`; `is_given`: whether the experiment or the user chose it.

    `steps_to_target`: by variant, the baseline included, the median number of steps until a run reaches the score
    `target`; None if half of the runs do not. `target_is_relative`: whether that is a share of the baseline's score.
    """

    baseline: str
    is_given: bool
    metric: Metric
    margin: float | None
    is_sequential: bool
    rows: list[PairedRow]
    target: float | None
    target_is_relative: bool
    steps_to_target: dict[str, float | None]

    def sentences(self) -> list[str]:
        """One sentence per variant: the verdict first."""
        return [_sentence(row, self) for row in self.rows]


def pair_variants(
    variants: Sequence[Scores],
    baseline: Scores,
    metric: Metric,
    *,
    is_given: bool,
    aa: str | None = None,
    margin: float | None = None,
    looks: Sequence[int] | None = None,
    target: float | None = None,
) -> PairedTable:
    """Compare `variants`, without the baseline, with `baseline` by seed.

    `aa`: the name of the baseline's copy; `margin`, `looks`: see `compare_pairs`. `target`: the score whose steps are
    compared; by default `TARGET` of the baseline's mean.
    """
    judged = [variant for variant in variants if variant.name != aa]
    finals = compare_pairs([_differences(variant, baseline) for variant in judged], margin, looks=looks)
    results = dict(zip((variant.name for variant in judged), finals, strict=True))
    rows = []
    for variant in variants:
        final = results.get(variant.name)
        if final is None:
            (final,) = compare_pairs([_differences(variant, baseline)])
        seeds = [seed for seed in sorted(variant.final) if seed in baseline.final][: final.pairs + final.invalid]
        used = Scores(variant.name, {seed: variant.final[seed] for seed in seeds}, variant.curves)
        (area,) = compare_pairs([paired_differences(_areas(used), _areas(baseline))])
        rows.append(PairedRow(variant.name, seeds, final, area, _correlation(used, baseline), variant.name == aa))
    values = list(baseline.final.values())
    target_is_relative = target is None
    if target is None and values:
        target = TARGET * sum(values) / len(values)
    steps = {variant.name: _steps(variant, target) for variant in [baseline, *variants]}
    return PairedTable(
        baseline.name, is_given, metric, margin, looks is not None, rows, target, target_is_relative, steps
    )


def _differences(variant: Scores, baseline: Scores) -> list[float]:
    return paired_differences(dict(sorted(variant.final.items())), baseline.final)


def _areas(scores: Scores) -> dict[int, float]:
    areas = {seed: area_under_curve(scores.curves[seed]) for seed in sorted(scores.final)}
    return {seed: area for seed, area in areas.items() if area is not None}


def _correlation(variant: Scores, baseline: Scores) -> float | None:
    common = sorted(variant.final.keys() & baseline.final.keys())
    ours, theirs = ([scores.final[seed] for seed in common] for scores in (variant, baseline))
    if len(common) < 3 or len(set(ours)) == 1 or len(set(theirs)) == 1:
        return None
    return correlation(ours, theirs)


def _steps(scores: Scores, target: float | None) -> float | None:
    if target is None or not scores.curves:
        return None
    steps = [steps_to_score(curve, target) for curve in scores.curves.values()]
    value = median(float("inf") if step is None else step for step in steps)
    return None if value == float("inf") else value


def _sentence(row: PairedRow, table: PairedTable) -> str:
    result, spec = row.final, table.metric.format_spec
    if result.mean is None:
        return f"{row.name}: no seed in common with {table.baseline} yet."
    pairs = f"{result.pairs} pair{'s' if result.pairs != 1 else ''}"
    if result.later:
        pairs += f"; {result.later} made after this verdict {'are' if result.later > 1 else 'is'} not used"
    interval = ""
    if result.interval is not None:
        low, high = (format(bound, f"+{spec}") for bound in result.interval)
        interval = f", 95 % interval {low} to {high}"
    measured = f"{format(result.mean, f'+{spec}')} {table.metric.title}{interval}, {pairs}"
    if row.is_aa:
        return f"{row.name}, a copy of {table.baseline} with other random numbers: {measured}."
    if result.verdict == "equivalent":
        margin = f"± {table.margin:g} {table.metric.title}"
        return f"{row.name} is equivalent to {table.baseline} within {margin}: {measured}."
    if result.verdict == "undecided":
        return f"{row.name} against {table.baseline} is {result.words}: {measured}."
    return f"{row.name} is {result.verdict} than {table.baseline}: {measured}."
