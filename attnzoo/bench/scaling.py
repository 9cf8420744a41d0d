"""`bench scaling`: cost of every registered attention against tokens, queries, points and levels."""

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
from attnzoo.bench.crossings import crossings
from attnzoo.bench.operators.benchmark import PASSES
from attnzoo.bench.timing import time_interleaved
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot

DIM, HEADS, LEVELS = 256, 8, 4  # of Deformable DETR
TOKENS = tuple(2**exponent for exponent in range(10, 17))
FIT_MIN_TOKENS = 2**12  # below, call overhead dominates
BASE_TOKENS = 2**12  # where queries, points or levels vary
OBJECT_QUERIES = 300  # of Deformable DETR's decoder
QUERIES = (30, 100, 300, 1000, 3000)
POINTS = (1, 2, 4, 8, 16)
NUM_LEVELS = (1, 2, 3, 4, 5)
ROLES = ("encoder", "decoder")  # as the command names them; an attention of stages alone counts as an encoder's
MIN_ROUNDS = 3
MAX_MEMORY_FRACTION = 0.8  # of the free memory


@dataclass(frozen=True)
class ScalingCase:
    """One attention on one feature pyramid; `axis` is what varies, `x` its value.

    `axis`: "tokens", "points", "levels", in the decoder also "queries", whose number is `queries`. In encoder and stage
    every token is a query.
    """

    attention: str
    role: str
    axis: str
    x: int
    queries: int
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


def attentions_in(role: str) -> list[str]:
    """Every registered attention for a role of `ROLES`."""
    wanted = {Role.DECODER} if role == "decoder" else {Role.ENCODER, Role.STAGE}
    return [name for name in names() if ATTENTIONS.get(name).roles & wanted]


def select_attentions(wanted: Sequence[str], roles: Sequence[str]) -> dict[str, list[str]]:
    """Those of the attentions `wanted` that each role has. Raises UserError if no role has any of them."""
    selected = {role: [name for name in attentions_in(role) if name in wanted] for role in roles}
    if not any(selected.values()):
        raise UserError(f"--roles {' '.join(roles)}: {', '.join(wanted)}: no attention for this role")
    return selected


def scaling_cases(attentions: dict[str, list[str]], limits: Limits) -> Iterator[list[ScalingCase]]:
    """Groups of cases that are timed together, by role in order of growing cost; the axis "tokens" first."""
    for role, role_attentions in attentions.items():
        yield from _role_cases(role, role_attentions, limits)


def _role_cases(role: str, attentions: Sequence[str], limits: Limits) -> Iterator[list[ScalingCase]]:
    roles = {name: _slot_role(name, role) for name in attentions}
    levels = {name: 1 if roles[name] == Role.STAGE else LEVELS for name in attentions}
    for tokens in (t for t in TOKENS if t <= limits.tokens):
        yield [_make_case(name, roles[name], "tokens", None, tokens, levels[name]) for name in attentions]
    base_tokens = min(BASE_TOKENS, limits.tokens)
    if role == "decoder":
        for queries in QUERIES:
            yield [
                _make_case(name, roles[name], "queries", queries, base_tokens, levels[name], queries)
                for name in attentions
            ]
    with_points = [name for name in attentions if "points" in ATTENTIONS.options(name)]
    for points in POINTS:
        yield [
            _make_case(name, roles[name], "points", points, base_tokens, levels[name], points=points)
            for name in with_points
        ]
    multi_level = [name for name in attentions if roles[name] != Role.STAGE]
    for num_levels in NUM_LEVELS:
        yield [_make_case(name, roles[name], "levels", num_levels, base_tokens, num_levels) for name in multi_level]


def _slot_role(name: str, role: str) -> Role:
    if role == "decoder":
        return Role.DECODER
    return Role.ENCODER if Role.ENCODER in ATTENTIONS.get(name).roles else Role.STAGE


def _make_case(
    name: str,
    role: Role,
    axis: str,
    x: int | None,
    tokens: int,
    levels: int,
    queries: int = OBJECT_QUERIES,
    **options: Any,
) -> ScalingCase:
    if levels > 1 and "level" in ATTENTIONS.options(name):
        options["level"] = 0
    shapes = map_shapes(tokens, levels)
    num_tokens = sum(h * w for h, w in shapes)
    if role != Role.DECODER:
        queries = num_tokens
    return ScalingCase(name, role.value, axis, num_tokens if x is None else x, queries, shapes, options)


def map_shapes(tokens: int, levels: int) -> tuple[tuple[int, int], ...]:
    """Square feature maps, each half as wide as the one before, with about `tokens` in total."""
    side = max(1, round(math.sqrt(tokens / sum(4.0**-level for level in range(levels)))))
    return tuple((-(-side // 2**level),) * 2 for level in range(levels))


def build_inputs(case: ScalingCase, device: torch.device) -> tuple[Attention, Queries, Pyramid]:
    """The attention at its initialisation (points lie within a few pixels of their query) and random tokens.

    The reference points of object queries are uniform in the image.
    """
    slot = Slot(DIM, HEADS, len(case.shapes), Role(case.role), map_sizes=case.shapes)
    torch.manual_seed(0)
    attention = build(case.attention, slot, **case.options).to(device)
    tokens = torch.randn(1, case.tokens, DIM, device=device)
    pyramid = Pyramid(tokens, Layout.unpadded(case.shapes, 1, device))
    if case.role != Role.DECODER:
        return attention, pyramid.as_queries(), pyramid
    objects = torch.randn(1, case.queries, DIM, device=device)
    return attention, Queries(objects, torch.rand(1, case.queries, 2, device=device)), pyramid


def run(
    device: torch.device,
    attentions: dict[str, list[str]],
    passes: Sequence[str] = PASSES,
    limits: Limits = Limits(),
    seconds: float = 1.0,
    on_progress: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """The record of all cases of `attentions`, names by role; `on_progress` receives it after every group of rows."""
    record = records.header("scaling", device, ["attnzoo"])
    record |= {"memory": memory.METHODS[device.type], "rows": [], "skipped": [], "fits": [], "crossings": []}
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
    record["crossings"] = crossings(record["rows"])
    return record


def skip_reason(
    case: ScalingCase, pass_name: str, rows: list[dict[str, Any]], limits: Limits, free_bytes: int
) -> str | None:
    """Why a case is expected to exceed the limits, extrapolated from the largest one before it; else None."""
    same = (case.attention, case.role, pass_name, "tokens")
    before = [row for row in rows if (row["attention"], row["role"], row["pass"], row["axis"]) == same]
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
    inputs = {case.attention: build_inputs(case, device) for case in group}
    calls = {name: _make_call(*arguments, pass_name) for name, arguments in inputs.items()}
    samples = time_interleaved(calls, device, seconds, MIN_ROUNDS)
    return [
        {
            **asdict(case),
            "tokens": case.tokens,
            "pass": pass_name,
            "flops": count_flops(*inputs[case.attention]),
            "seconds": samples[case.attention],
            "peak_bytes": memory.peak_memory(calls[case.attention], device),
        }
        for case in group
    ]


def count_flops(attention: Attention, queries: Queries, pyramid: Pyramid) -> int:
    """Multiply-accumulates of a forward pass: the algorithm's and those that the implementation adds."""
    size = queries.tokens.shape[1] if queries.layout is None else queries.layout
    return attention.flops(size, pyramid.layout) + attention.extra_flops(size, pyramid.layout)


def _make_call(attention: Attention, queries: Queries, pyramid: Pyramid, pass_name: str) -> Callable[[], object]:
    def forward() -> Tensor:
        with torch.no_grad():
            return attention(queries, pyramid)

    def forward_backward() -> tuple[Tensor, ...]:
        output = attention(queries, pyramid)
        return torch.autograd.grad(output, list(attention.parameters()), torch.ones_like(output), allow_unused=True)

    return forward if pass_name == "forward" else forward_backward


def fits(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Power laws of time, peak memory and FLOPs per role, axis, attention and pass; against tokens from 4k on."""
    groups: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["axis"] != "tokens" or row["x"] >= FIT_MIN_TOKENS:
            groups.setdefault((row["role"], row["axis"], row["attention"], row["pass"]), []).append(row)
    return [
        {
            "role": role,
            "axis": axis,
            "attention": name,
            "pass": pass_name,
            "flops": _fit(group, lambda row: row["flops"]),
            "time": _fit(group, lambda row: median(row["seconds"])),
            "memory": _fit(group, lambda row: row["peak_bytes"]),
        }
        for (role, axis, name, pass_name), group in groups.items()
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
