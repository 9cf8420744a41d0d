"""The runs of a sweep that are needed by now: all of them, or the rounds of seeds that are not yet decided."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

from attnzoo.config.experiment import ExperimentConfig
from attnzoo.errors import UserError, plural
from attnzoo.paths import real_path, user_path
from attnzoo.report.paired import LEVEL, paired_differences
from attnzoo.report.power import pairs_for_difference, pairs_for_equivalence
from attnzoo.report.records import read_records, with_digests
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.metrics import PRIMARY_METRICS, final_values
from attnzoo.sweep.expand import RunSpec, Sweep

MARGIN_DEVIATIONS = (0.25, 0.5, 1.0)  # deviations of a difference, in margins, for which the pairs are listed


class SeedRounds:
    """What of `sweep` to run, given the runs that are finished."""

    def __init__(self, sweep: Sweep, config: ExperimentConfig):
        self.sweep = sweep
        self._margin = config.sweep.margin
        self._costs = config.sweep.costs
        self._given_baseline = None if config.sweep.baseline is None else sweep.baseline
        self._include = [str(real_path(user_path(folder))) for folder in config.sweep.include]
        self._metric = PRIMARY_METRICS[config.task]
        self._included = self._read_included()

    @property
    def comparison(self) -> dict[str, Any] | None:
        """How the runs are compared, for the ledger: the fields of `report.runs.SweepPlan`; None for one variant."""
        if len(self.sweep.variants) < 2:  # such as one run that resumes by its own config
            return None
        looks = list(self.sweep.plan.looks) if self.sweep.plan else None
        return {
            "baseline": self._given_baseline,
            "aa": self.sweep.aa,
            "margin": self._margin,
            "looks": looks,
            "include": self._include,
            "costs": self._costs,
            "digests": list(dict.fromkeys(run.digest for run in self.sweep.runs)),
        }

    def needed_runs(self) -> list[RunSpec]:
        """The runs up to the first round that is not finished, or that decides every variant; all without a plan.

        Without those that sweep.include has.
        """
        runs = [run for run in self.sweep.runs if (run.digest, run.seed) not in self._included]
        if self.sweep.plan is None:
            return runs
        needed = self.sweep.plan.needed_seeds(
            self.sweep.variants, self._scores(), self.sweep.baseline, self._margin, self.sweep.aa
        )
        return [run for run in runs if run.seed in needed[run.variant_name]]

    def describe(self) -> list[str]:
        """The rounds, and the pairs that the margin needs, for the dry run."""
        lines = []
        if num_included := sum((run.digest, run.seed) in self._included for run in self.sweep.runs):
            lines.append(f"{plural(num_included, 'run')} finished in sweep.include")
        if plan := self.sweep.plan:
            lines.append(
                f"seeds: {plan.at_least} to {plan.at_most} of each variant, {plan.per_round} more at a time while "
                f"undecided against {self.sweep.baseline}"
            )
        if self._margin is not None and (comparisons := len(self._others())):
            title = f"{self._metric.title} ± {self._margin:g}"
            deviations = self._deviations()
            if deviations:
                known = max(deviations)
                lines.append(f"margin {title}: {self._pairs(known, comparisons)} (largest measured)")
            else:
                listed = [self._pairs(factor * self._margin, comparisons) for factor in MARGIN_DEVIATIONS]
                lines.append(f"margin {title}: {'; '.join(listed)}")
        return lines

    def _pairs(self, deviation: float, comparisons: int) -> str:
        """The pairs that tell zero from the margin, whichever is true, at a deviation of the differences."""
        assert self._margin is not None
        level = LEVEL / comparisons
        needed = (
            pairs_for_difference(self._margin, deviation, level),
            pairs_for_equivalence(self._margin, deviation, level / 2),
        )
        pairs = "over 9,999 pairs" if None in needed else plural(max(n for n in needed if n is not None), "pair")
        return f"{pairs} at a deviation of differences of {deviation:.3g}"

    def _others(self) -> Sequence[str]:
        return [name for name in self.sweep.variants if name not in (self.sweep.baseline, self.sweep.aa)]

    def _deviations(self) -> list[float]:
        """The measured deviations of the differences, of variants with at least three pairs."""
        scores = self._scores()
        differences = [
            paired_differences(scores.get(name, {}), scores.get(self.sweep.baseline, {})) for name in self._others()
        ]
        return [value for values in differences if len(values) > 2 and math.isfinite(value := stdev(values)) and value]

    def _scores(self) -> dict[str, dict[int, float]]:
        scores: dict[str, dict[int, float]] = {}
        for run in self.sweep.runs:
            included = self._included.get((run.digest, run.seed))
            score = final_score(run.folder, self._metric.key) if included is None else included
            if score is not None:
                scores.setdefault(run.variant_name, {})[run.seed] = score
        return scores

    def _read_included(self) -> dict[tuple[str, int], float]:
        """The final score by config and seed of the finished runs in sweep.include."""
        try:
            records, _ = read_records(map(Path, self._include))
        except UserError as error:
            raise UserError(f"sweep.include: {error}", key="sweep.include") from None
        finished = with_digests([run for run in records if run.final], {run.digest for run in self.sweep.runs})
        return {(run.digest, run.config.seed): run.final.get(self._metric.key, math.nan) for run in finished}


def final_score(run: RunFolder, key: str) -> float | None:
    """The metric `key` at the end of a finished run, NaN if it was not finite; None if it is unfinished or corrupt."""
    try:
        values = final_values(*run.read())
    except UserError:
        return None
    return values.get(key, math.nan) if values else None
