"""Scales and ticks of plots."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from attnzoo.report.page.svg import line, text

PADDING = 0.06  # of the data's range, at both ends


@dataclass(frozen=True)
class Scale:
    """A linear map of values in [low, high] to pixels in [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, spacing: float) -> list[float]:
        """Round values, about `spacing` pixels apart."""
        count = max(2, int(abs(self.end - self.start) / spacing))
        step = _round_step((self.high - self.low) / count)
        ticks = self._multiples(step)
        return ticks if len(ticks) > 2 else self._multiples(_round_step(step / 2.5))

    def _multiples(self, step: float) -> list[float]:
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scale(values: Iterable[float], start: float, end: float, *, floor: float | None = None, pad: bool = True) -> Scale:
    """The scale whose range holds all finite `values`, padded, but not below `floor`; (0, 1) without values."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    space = PADDING * (high - low) if pad else 0.0
    if high == low:
        space = abs(high) * 0.1 or 1.0
    low, high = low - space, high + space
    if floor is not None and min(finite) >= floor:
        low = max(low, floor)
    return Scale(low, high, start, end)


def format_tick(value: float, ticks: list[float], sign: bool = False) -> str:
    """A tick's label with the digits that its neighbours need."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(value) or 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value + 0.0:{'+' if sign and value else ''},.{decimals}f}".replace("-", "−")


def x_axis(x: Scale, top: float, bottom: float, title: str, *, grid: bool = False, sign: bool = False) -> Markup:
    """Ticks and a title below `bottom`; 40 pixels high."""
    ticks = x.ticks(70)
    parts = [line(x.start, bottom, x.end, bottom, "axis")]
    for value in ticks:
        parts.append(line(x(value), top if grid else bottom, x(value), bottom + (0 if grid else 4), "grid"))
        parts.append(text(x(value), bottom + 17, format_tick(value, ticks, sign), "tick", "middle"))
    parts.append(text((x.start + x.end) / 2, bottom + 36, title, "axis-title", "middle"))
    return Markup("").join(parts)


def y_axis(y: Scale, left: float, right: float, title: str) -> Markup:
    """Grid lines from `left` to `right` with labels left of them, and a title above."""
    ticks = y.ticks(44)
    parts = []
    for value in ticks:
        parts.append(line(left, y(value), right, y(value), "grid"))
        parts.append(text(left - 7, y(value) + 4, format_tick(value, ticks), "tick", "end"))
    parts.append(text(0, y.end - 9, title, "axis-title"))
    return Markup("").join(parts)


def _round_step(step: float) -> float:
    magnitude = 10 ** math.floor(math.log10(step))
    return next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= step * (1 - 1e-9))
