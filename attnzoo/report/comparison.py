"""The content of a comparison: its variants, the options in which they differ, and their metrics."""

from dataclasses import dataclass, field
from typing import Any

from attnzoo.report.pairs import PairedTable
from attnzoo.report.statistics import Estimate


@dataclass(frozen=True)
class Variant:
    """Runs that differ only in the seed. `estimates`, by metric, use the finished ones only.

    `options`: the keys, shortened, in which the variants differ, and their values.
    """

    options: dict[str, Any]
    estimates: dict[str, Estimate | None]
    seeds: tuple[int, ...]
    unfinished: tuple[str, ...]  # "seed 2 failed"
    hours: float | None = None  # of all finished runs, in all processes; None if not recorded
    footnotes: dict[str, int] = field(default_factory=dict)  # in what its runs' environments differ -> footnote


@dataclass(frozen=True)
class Comparison:
    """Columns of options, one row per variant, footnotes, the tasks of the runs, and the variants against the baseline.

    `paired` is None for one variant, and for runs of several tasks or data sets.
    """

    columns: list[str]
    variants: list[Variant]
    notes: list[str]
    tasks: frozenset[str]
    paired: PairedTable | None = None
