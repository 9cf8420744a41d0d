"""The seeds of a sweep: a list, or rounds until every comparison with the baseline is decided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnzoo.config.experiment import SweepConfig
from attnzoo.errors import UserError, as_yaml, unknown
from attnzoo.report.paired import compare_pairs, paired_differences
from attnzoo.report.power import fewest_pairs
from attnzoo.report.sequential import planned_looks

KEY = "sweep.seeds"
OPTIONS = ("until", "at_least", "at_most", "first", "per_round")


@dataclass(frozen=True)
class SeedPlan:
    """Rounds of seeds: `at_least` at first, then `per_round` more for the variants that are undecided."""

    first: int
    at_least: int
    at_most: int
    per_round: int

    @property
    def seeds(self) -> list[int]:
        """All seeds that may be run, in order."""
        return list(range(self.first, self.first + self.at_most))

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of pairs after which the variants are compared."""
        return planned_looks(self.at_least, self.at_most, self.per_round)

    def needed_seeds(
        self,
        names: Sequence[str],
        scores: Mapping[str, Mapping[int, float]],
        baseline: str,
        margin: float | None = None,
        aa: str | None = None,
    ) -> dict[str, set[int]]:
        """The seeds of each variant to run by now, given the final scores of finished runs (higher is better).

        They end with the first round that is not finished, or after which every variant is decided. The A/A copy `aa`
        runs as often as the baseline.
        """
        others = [name for name in names if name not in (baseline, aa)]
        undecided = set(others)
        needed: dict[str, set[int]] = {name: set() for name in names}
        for pairs in self.looks:
            for name in names:
                if name not in others or name in undecided:
                    needed[name] |= set(self.seeds[:pairs])
            if any(seed not in scores.get(name, {}) for name, seeds in needed.items() for seed in seeds):
                break
            differences = [
                paired_differences({seed: scores[name][seed] for seed in sorted(needed[name])}, scores[baseline])
                for name in others
            ]
            results = compare_pairs(differences, margin, looks=self.looks)
            undecided = {name for name, result in zip(others, results, strict=True) if result.verdict == "undecided"}
            if not undecided:
                break
        return needed


def seed_plan(sweep: SweepConfig, num_variants: int) -> SeedPlan | None:
    """The plan of `sweep.seeds: {until: decided, …}`; None for a list.

    `num_variants` includes the baseline. Raises UserError for an unknown option or a value that does not fit.
    """
    if isinstance(sweep.seeds, list):
        return None
    options = dict(sweep.seeds)
    for option in options:
        if option not in OPTIONS:
            raise unknown("option", option, OPTIONS, KEY)
    if options.get("until") != "decided":
        raise UserError(f"{KEY}.until = {as_yaml(options.get('until'))}: expected 'decided'", key=f"{KEY}.until")
    if "at_most" not in options:
        raise UserError(f"{KEY}: at_most is missing, the most seeds that may be run", key=KEY)
    if num_variants < 2:
        raise UserError(f"{KEY}: a sweep of one variant has nothing to decide", key=KEY)
    fewest = fewest_pairs(num_variants - 1)
    if "at_least" not in options and _int(options, "at_most") < fewest:
        message = (
            f"{KEY}.at_most = {options['at_most']}: expected at least {fewest}, the fewest pairs that decide so many "
            f"variants, or a smaller at_least (2 to at_most)"
        )
        raise UserError(message, key=f"{KEY}.at_most")
    default = {"first": 0, "per_round": 1, "at_least": fewest}
    values = {name: _int(default | options, name) for name in ("first", "at_least", "at_most", "per_round")}
    if not 2 <= values["at_least"] <= values["at_most"]:
        raise UserError(
            f"{KEY}.at_least = {values['at_least']}: expected 2 to at_most = {values['at_most']}",
            key=(f"{KEY}.at_least", f"{KEY}.at_most"),
        )
    if values["per_round"] < 1:
        raise UserError(f"{KEY}.per_round = {values['per_round']}: expected at least 1", key=f"{KEY}.per_round")
    return SeedPlan(**values)


def _int(options: Mapping[str, int | str], name: str) -> int:
    value = options[name]
    if not isinstance(value, int):
        raise UserError(f"{KEY}.{name} = {as_yaml(value)}: expected int", key=f"{KEY}.{name}")
    return value
