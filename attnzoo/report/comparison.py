"""What a comparison holds: its variants, what tells them apart, and what was measured of each."""

from dataclasses import dataclass
from typing import Any

from attnzoo.report.statistics import Estimate


@dataclass(frozen=True)
class Variant:
    """The runs that differ in nothing but the seed. Only finished ones count in `estimates`.

    `options` holds what tells it from the other variants, by short labels.
    """

    options: dict[str, Any]
    estimates: dict[str, Estimate | None]
    seeds: tuple[int, ...]
    unfinished: tuple[str, ...]  # "seed 2 failed"


@dataclass(frozen=True)
class Comparison:
    """What a table shows: its columns of options, a row per variant, and notes; `tasks` are those of the runs."""

    columns: list[str]
    variants: list[Variant]
    notes: list[str]
    tasks: frozenset[str] = frozenset({"detection"})
