"""`bench scaling`: cost of every registered attention against tokens, points and levels."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from scipy.stats import linregress
from torch import Tensor

from attnzoo.attention import ATTENTIONS, Attention, build, names
from attnzoo.bench import memory, records
from attnzoo.bench.operators.benchmark import PASSES
from attnzoo.bench.timing import time_interleaved
from attnzoo.geometry import Layout, Pyramid, Role, Slot

DIM, HEADS, LEVELS = 256, 8, 4  # of Deformable DETR
TOKENS = tuple(2**exponent for exponent in range(10, 17))
FIT_MIN_TOKENS = 2**12  # below, call overhead dominates
BASE_TOKENS = 2**12  # where points or levels vary
MIN_ROUNDS = 3
MAX_MEMORY_FRACTION = 0.8  # of the free memory


@dataclass(frozen=True)
class ScalingCase:
    """One attention on one feature pyramid; `axis` is what varies ("tokens", "points", "levels"), `x` its value."""

    attention: str
    axis: str
    x: int
    shapes: tuple[tuple[int, int], ...]
    options: dict[str, Any]

    @property
    def tokens(self) -> int:
        return sum(h * w for h, w in self.shapes)


@dataclass(frozen=True)
class Limits:
    """A case is skipped if its call is expected to exceed `seconds` or the free memory, or if it exceeds `tokens`.

    The expectation is quadratic growth from the previous number of tokens.
    """

    seconds: float = 10.0
    tokens: int = TOKENS[-1]


@dataclass(frozen=True)
class PowerLaw:
    """y = scale · x^exponent; `exponent_stderr` is the standard error of the exponent, None with only two points."""

    scale: float
    exponent: float
    exponent_stderr: float | None


def spatial_attentions() -> list[str]:
    """Every registered attention for feature maps; decoder-only attentions do not grow with the map."""
    return [name for name in names() if ATTENTIONS.get(name).roles & {Role.ENCODER, Role.STAGE}]


def scaling_cases(attentions: Sequence[str], limits: Limits) -> Iterator[list[ScalingCase]]:
    """Groups of cases that are timed together, in order of growing cost; the axis "tokens" first."""
    levels = {name: LEVELS if _is_multi_level(name) else 1 for name in attentions}
    for tokens in (t for t in TOKENS if t <= limits.tokens):
        yield [_make_case(name, "tokens", None, tokens, levels[name]) for name in attentions]
    base_tokens = min(BASE_TOKENS, limits.tokens)
    with_points = [name for name in attentions if "points" in ATTENTIONS.options(name)]
    for points in (1, 2, 4, 8, 16):
        yield [_make_case(name, "points", points, base_tokens, levels[name], points=points) for name in with_points]
    multi_level = [name for name in attentions if _is_multi_level(name)]
    for num_levels in (1, 2, 3, 4, 5):
        yield [_make_case(name, "levels", num_levels, base_tokens, num_levels) for name in multi_level]


def _is_multi_level(name: str) -> bool:
    return Role.ENCODER in ATTENTIONS.get(name).roles


def _make_case(name: str, axis: str, x: int | None, tokens: int, levels: int, **options: Any) -> ScalingCase:
    if levels > 1 and "level" in ATTENTIONS.options(name):
        options["level"] = 0
    shapes = map_shapes(tokens, levels)
    return ScalingCase(name, axis, sum(h * w for h, w in shapes) if x is None else x, shapes, options)


def map_shapes(tokens: int, levels: int) -> tuple[tuple[int, int], ...]:
    """Square feature maps, each half as wide as the one before, with about `tokens` in total."""
    side = max(1, round(math.sqrt(tokens / sum(4.0**-level for level in range(levels)))))
    return tuple((-(-side // 2**level),) * 2 for level in range(levels))


def build_inputs(case: ScalingCase, device: torch.device) -> tuple[Attention, Pyramid]:
    """The attention at its initialisation (points lie within a few pixels of their query) and random tokens."""
    role = Role.ENCODER if _is_multi_level(case.attention) else Role.STAGE
    slot = Slot(DIM, HEADS, len(case.shapes), role, map_sizes=case.shapes)
    torch.manual_seed(0)
    attention = build(case.attention, slot, **case.options).to(device)
    tokens = torch.randn(1, case.tokens, DIM, device=device)
    return attention, Pyramid(tokens, Layout.unpadded(case.shapes, 1, device))


def run(
    device: torch.device,
    attentions: Sequence[str],
    passes: Sequence[str] = PASSES,
    limits: Limits = Limits(),
    seconds: float = 1.0,
    on_progress: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """The record of all cases; `on_progress` receives it after every group of rows."""
    record = records.header("scaling", device, ["attnzoo"])
    record |= {"memory": memory.METHODS[device.type], "rows": [], "skipped": [], "fits": []}
    for group in scaling_cases(attentions, limits):
        for pass_name in passes:
            supported = []
            for case in group:
                reason = skip_reason(case, pass_name, record["rows"], limits, free_memory(device))
                if reason is None:
                    supported.append(case)
                else:
                    record["skipped"].append({**asdict(case), "pass": pass_name, "reason": reason})
            record["rows"] += _measure(supported, pass_name, device, seconds)
            on_progress(record)
    record["fits"] = fits(record["rows"])
    return record


def skip_reason(
    case: ScalingCase, pass_name: str, rows: list[dict[str, Any]], limits: Limits, free_bytes: int
) -> str | None:
    """Why a case is expected to exceed the limits, extrapolated from the largest one before it; else None."""
    before = [r for r in rows if (r["attention"], r["pass"], r["axis"]) == (case.attention, pass_name, "tokens")]
    if not before or case.axis != "tokens":
        return None
    largest = max(before, key=lambda row: row["tokens"])
    growth = (case.tokens / largest["tokens"]) ** 2
    seconds = growth * min(largest["seconds"])
    if seconds > limits.seconds:
        return f"expected to take {seconds:.0f} s, the limit is {limits.seconds:g} s"
    num_bytes = growth * (largest["peak_bytes"] or 0)
    if num_bytes > MAX_MEMORY_FRACTION * free_bytes:
        return f"expected to need {num_bytes / 2**30:.1f} GiB of {free_bytes / 2**30:.1f} GiB free"
    return None


def free_memory(device: torch.device) -> int:
    """Available bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def _measure(
    group: Sequence[ScalingCase], pass_name: str, device: torch.device, seconds: float
) -> list[dict[str, Any]]:
    calls = {case.attention: _make_call(*build_inputs(case, device), pass_name) for case in group}
    samples = time_interleaved(calls, device, seconds, MIN_ROUNDS)
    return [
        {
            **asdict(case),
            "tokens": case.tokens,
            "pass": pass_name,
            "seconds": samples[case.attention],
            "peak_bytes": memory.peak_memory(calls[case.attention], device),
        }
        for case in group
    ]


def _make_call(attention: Attention, pyramid: Pyramid, pass_name: str) -> Callable[[], object]:
    queries = pyramid.as_queries()

    def forward() -> Tensor:
        with torch.no_grad():
            return attention(queries, pyramid)

    def forward_backward() -> tuple[Tensor, ...]:
        output = attention(queries, pyramid)
        return torch.autograd.grad(output, list(attention.parameters()), torch.ones_like(output), allow_unused=True)

    return forward if pass_name == "forward" else forward_backward


def fits(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Power laws of time and peak memory per axis, attention and pass; against tokens from 4k on."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["axis"] != "tokens" or row["x"] >= FIT_MIN_TOKENS:
            groups.setdefault((row["axis"], row["attention"], row["pass"]), []).append(row)
    return [
        {
            "axis": axis,
            "attention": name,
            "pass": pass_name,
            "time": _fit(group, lambda row: median(row["seconds"])),
            "memory": _fit(group, lambda row: row["peak_bytes"]),
        }
        for (axis, name, pass_name), group in groups.items()
    ]


def _fit(rows: Sequence[dict[str, Any]], cost: Callable[[dict[str, Any]], float]) -> dict[str, Any] | None:
    x, y = [row["x"] for row in rows], [cost(row) for row in rows]
    law = fit_power_law(x, y) if all(y) else None
    return None if law is None else asdict(law)


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """Least squares on logarithms of positive values; None with fewer than two different x."""
    if len(set(x)) < 2:
        return None
    line = linregress([math.log(value) for value in x], [math.log(value) for value in y])
    stderr = float(line.stderr) if len(x) > 2 else None
    return PowerLaw(math.exp(line.intercept), float(line.slope), stderr)
