"""The content of a comparison: its variants, the options in which they differ, their metrics and their costs."""

from dataclasses import dataclass, field
from typing import Any

from attnzoo.report.pairs import PairedTable
from attnzoo.report.records import RunRecord
from attnzoo.report.statistics import Estimate
from attnzoo.rundir.costs import Costs, Quartiles


@dataclass(frozen=True)
class Variant:
    """Runs that differ only in the seed. `estimates`, by metric, use the finished ones only.

    `options`: the keys, shortened, in which the variants differ, and their values. `name`: that of the paired table.
    """

    options: dict[str, Any]
    estimates: dict[str, Estimate | None]
    seeds: tuple[int, ...]
    unfinished: tuple[str, ...]  # "seed 2 failed"
    cpu_hours: float | None = None  # of all threads of all finished runs; None if not recorded
    gpu_hours: float | None = None  # of all GPUs of all finished runs; None if not recorded
    footnotes: dict[str, int] = field(default_factory=dict)  # in what its runs' environments differ -> footnote
    name: str = ""
    digest: str = ""  # of the config
    runs: tuple[RunRecord, ...] = field(default=(), compare=False)  # all, by seed

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """The finished runs."""
        return tuple(run for run in self.runs if run.final)


@dataclass(frozen=True)
class Comparison:
    """Columns of options, one row per variant, footnotes, the tasks of the runs, and the variants against the baseline.

    `paired` is None for one variant, and for runs of several tasks or data sets. `warnings`: those of the notes that
    say what is missing or cannot be compared. `costs`: measured for these runs' folder; None if they were not.
    """

    columns: list[str]
    variants: list[Variant]
    notes: list[str]
    tasks: frozenset[str]
    paired: PairedTable | None = None
    warnings: tuple[str, ...] = ()
    costs: Costs | None = None

    def cost(self, variant: Variant, key: str) -> Quartiles | None:
        """A quantity of costs.json in its unit; None if it was not measured for this config of the variant."""
        name = self._name_in_costs(variant)
        return self.costs.quartiles(name, key) if self.costs and name is not None else None

    def cost_ratio(self, variant: Variant, key: str) -> Quartiles | None:
        """The same as a ratio to the baseline of the costs."""
        name = self._name_in_costs(variant)
        return self.costs.ratios(name, key) if self.costs and name is not None else None

    def _name_in_costs(self, variant: Variant) -> str | None:
        """Costs are found by the config: a variant that has changed since has none."""
        measured = self.costs.variants if self.costs else ()
        same = [costs.name for costs in measured if costs.digest and costs.digest == variant.digest]
        return variant.name if variant.name in same else next(iter(same), None)
