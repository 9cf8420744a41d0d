"""Field types of config dataclasses: numbers in a range and named blocks.

A `NamedBlock`, `{name: …, option: …}`, selects a registered constructor; the options are its keyword arguments, checked
against its signature. Changing the name drops the old options.

A `Literal` lists the choices of a key; `number` and `numbers` give the range of a number, or of each in a list. All
numbers are finite, those in options of named blocks too.
"""

import math
from dataclasses import dataclass, field
from typing import Any

NamedBlock = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`: None means unbounded, open ends are excluded."""

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        below = self.high is None or (value < self.high if self.open_high else value <= self.high)
        return (isinstance(value, int) or math.isfinite(value)) and above and below  # isfinite overflows on large ints

    def __str__(self) -> str:
        low = [] if self.low is None else [f"{'more than' if self.open_low else 'at least'} {self.low}"]
        high = [] if self.high is None else [f"{'less than' if self.open_high else 'at most'} {self.high}"]
        return "a number " + " and ".join(low + high) if low or high else "a finite number"


FINITE = Range()
COUNT = Range(low=1, high=10**9)
LAYERS = Range(low=0, high=1000)
SOME_LAYERS = Range(low=1, high=1000)
WORKERS = Range(low=0, high=1024)
THREADS = Range(low=1, high=1024)
NON_NEGATIVE = Range(low=0)
POSITIVE = Range(low=0, open_low=True)
FRACTION = Range(low=0, high=1)
BELOW_ONE = Range(low=0, high=1, open_high=True)
SEED = Range(low=0, high=2**32 - 1)
OPEN_FRACTION = Range(low=0, high=1, open_low=True, open_high=True)


def number(default: Any, allowed: Range) -> Any:
    """A field for a number in a range, or null."""
    return field(default=default, metadata={"range": allowed})


def numbers(default: list[Any], allowed: Range) -> Any:
    """A field for a list of numbers in a range; it may be empty only if the default is."""
    return field(default_factory=lambda: list(default), metadata={"range": allowed, "non_empty": bool(default)})


def named(name: str) -> Any:
    """A field for a `NamedBlock`; `name` is the default."""
    return field(default_factory=lambda: {"name": name}, metadata={"named_block": True})
