"""How a config dataclass declares its keys: ranges of numbers and named blocks.

A block typed `NamedBlock`, a dict with a `name`, selects a registered constructor by that name; the other keys are its
options, checked against its signature. Changing the name drops the old options.

A `Literal` lists the words that a key takes; `number` and `numbers` give the range of a number, or of each in a list.
All numbers are finite, those in options of named blocks too.
"""

import math
from dataclasses import dataclass, field
from typing import Any

NamedBlock = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`; None is no limit, an open end is not itself a member."""

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
COUNT = Range(low=1)
NON_NEGATIVE = Range(low=0)
POSITIVE = Range(low=0, open_low=True)
SHARE = Range(low=0, high=1)
BELOW_ONE = Range(low=0, high=1, open_high=True)
SEED = Range(low=0, high=2**32 - 1)
INSIDE_SHARE = Range(low=0, high=1, open_low=True, open_high=True)


def number(default: Any, within: Range) -> Any:
    """A field for a number, or null, in a range."""
    return field(default=default, metadata={"range": within})


def numbers(default: list[Any], within: Range) -> Any:
    """A field for a list whose every number is in a range; it is empty only where the default is."""
    return field(default_factory=lambda: list(default), metadata={"range": within, "filled": bool(default)})


def named(name: str) -> Any:
    return field(default_factory=lambda: {"name": name}, metadata={"named_block": True})
