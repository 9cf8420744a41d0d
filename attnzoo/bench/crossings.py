"""Where the curves of two attentions cross: the size from which one is cheaper than the other."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from statistics import median
from typing import Any

Curve = Mapping[int, float]  # cost by size


def crossings(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Crossings of time, peak memory and FLOPs against tokens and queries, of two attentions in the same role.

    Each has `cheaper_below`, `cheaper_above` and `x`, the size between two measured ones where the costs are equal, by
    interpolation of logarithms. Only where the order at the smallest and at the largest common size differ; of several
    crossings the last.
    """
    groups: dict[tuple[str, str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        if row["axis"] in ("tokens", "queries"):
            group = groups.setdefault((row["role"], row["axis"], row["pass"]), {})
            group.setdefault(row["attention"], []).append(row)
    found = []
    for (role, axis, pass_name), by_attention in groups.items():
        for cost in ("time", "memory", "flops"):
            if cost == "flops" and pass_name != "forward":
                continue
            curves = {name: curve for name, group in by_attention.items() if (curve := _curve(group, cost))}
            for first, second in combinations(curves, 2):
                crossing = find_crossing(curves[first], curves[second])
                if crossing is not None:
                    x, first_below = crossing
                    below, above = (first, second) if first_below else (second, first)
                    found.append(
                        {"role": role, "axis": axis, "pass": pass_name, "cost": cost}
                        | {"cheaper_below": below, "cheaper_above": above, "x": x}
                    )
    return found


def _curve(rows: Sequence[dict[str, Any]], cost: str) -> Curve:
    """The positive costs by size: {} where they were not measured."""
    key = {"memory": "peak_bytes", "flops": "flops"}.get(cost)
    costs = {row["x"]: median(row["seconds"]) if key is None else row[key] for row in rows}
    return {x: value for x, value in costs.items() if value}


def find_crossing(first: Curve, second: Curve) -> tuple[float, bool] | None:
    """The last size at which the costs are equal, and whether `first` is cheaper below; None if they do not cross.

    Single-level attentions have other numbers of tokens than those on a pyramid: both curves are interpolated at the
    sizes of either within their common range.
    """
    low, high = max(min(first), min(second)), min(max(first), max(second))
    sizes = sorted(x for x in {*first, *second} if low <= x <= high)
    ratios = [(math.log(x), _interpolate(first, x) - _interpolate(second, x)) for x in sizes]
    if len(ratios) < 2 or ratios[0][1] * ratios[-1][1] >= 0:
        return None
    (x0, before), (x1, after) = [
        (left, right) for left, right in pairwise(ratios) if left[1] * right[1] <= 0 and left[1] != right[1]
    ][-1]
    return math.exp(x0 + (x1 - x0) * before / (before - after)), ratios[0][1] < 0


def _interpolate(curve: Curve, x: int) -> float:
    """Logarithm of the cost at `x`, within the range of the curve."""
    if x in curve:
        return math.log(curve[x])
    left, right = next((a, b) for a, b in pairwise(sorted(curve)) if a < x < b)
    share = math.log(x / left) / math.log(right / left)
    return math.log(curve[left]) + share * math.log(curve[right] / curve[left])
