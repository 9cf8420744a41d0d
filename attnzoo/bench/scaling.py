"""`bench scaling`: cost of every registered attention against map size, points and levels."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from attnzoo.attention import ATTENTIONS, Attention, build, names
from attnzoo.bench import memory, records
from attnzoo.bench.fit import PowerLaw, power_law
from attnzoo.bench.operators.benchmark import PASSES
from attnzoo.bench.timing import interleave
from attnzoo.geometry import Layout, Pyramid, Role, Slot

DIM, HEADS, LEVELS = 256, 8, 4  # of Deformable DETR
TOKENS = tuple(2**exponent for exponent in range(10, 17))
FITTED_FROM = 2**12  # tokens: below, the cost of calls shows
AT = 2**12  # tokens, where points or levels vary
ROUNDS = 3
MEMORY_SHARE = 0.8  # of what is free may be used


@dataclass(frozen=True)
class Setup:
    """One attention on one pyramid; `axis` says what varies, `x` is its value."""

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
    """A call that is expected to take longer than `seconds`, or more memory than is free, is left out.

    Expected is growth with the square of the tokens since the size before.
    """

    seconds: float = 10.0
    tokens: int = TOKENS[-1]


def shapes_for(tokens: int, levels: int) -> tuple[tuple[int, int], ...]:
    """Square maps, each half as wide as the one before, of about `tokens` in all."""
    side = max(1, round(math.sqrt(tokens / sum(4.0**-level for level in range(levels)))))
    return tuple((-(-side // 2**level),) * 2 for level in range(levels))


def setups(attentions: Sequence[str], limits: Limits) -> Iterator[list[Setup]]:
    """What is measured side by side, in order of growing cost; the map size first."""
    for tokens in (t for t in TOKENS if t <= limits.tokens):
        yield [_setup(name, "tokens", None, tokens, LEVELS if _takes_levels(name) else 1) for name in attentions]
    for points in (1, 2, 4, 8, 16):
        able = [name for name in attentions if "points" in ATTENTIONS.options(name)]
        levels = {name: LEVELS if _takes_levels(name) else 1 for name in able}
        yield [_setup(name, "points", points, min(AT, limits.tokens), levels[name], points=points) for name in able]
    for count in (1, 2, 3, 4, 5):
        able = [name for name in attentions if _takes_levels(name)]
        yield [_setup(name, "levels", count, min(AT, limits.tokens), count) for name in able]


def _takes_levels(name: str) -> bool:
    return Role.ENCODER in ATTENTIONS.get(name).roles


def _setup(name: str, axis: str, x: int | None, tokens: int, levels: int, **options: Any) -> Setup:
    if levels > 1 and "level" in ATTENTIONS.options(name):
        options["level"] = 0
    shapes = shapes_for(tokens, levels)
    return Setup(name, axis, sum(h * w for h, w in shapes) if x is None else x, shapes, options)


def grid_attentions() -> list[str]:
    """Every registered attention whose queries lie on a grid; object queries do not grow with the map."""
    return [name for name in names() if ATTENTIONS.get(name).roles & {Role.ENCODER, Role.STAGE}]


def make(setup: Setup, device: torch.device) -> tuple[Attention, Pyramid]:
    """The attention as initialised (deformable points lie within a few pixels of their query) and random tokens."""
    role = Role.ENCODER if _takes_levels(setup.attention) else Role.STAGE
    slot = Slot(DIM, HEADS, len(setup.shapes), role, map_sizes=setup.shapes)
    torch.manual_seed(0)
    attention = build(setup.attention, slot, **setup.options).to(device)
    tokens = torch.randn(1, setup.tokens, DIM, device=device)
    return attention, Pyramid(tokens, Layout.unpadded(setup.shapes, 1, device))


def run(
    device: torch.device,
    attentions: Sequence[str],
    passes: Sequence[str] = PASSES,
    limits: Limits = Limits(),
    seconds: float = 1.0,
    progress: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """The record of all sizes; `progress` is called with it as it grows."""
    result = records.header("scaling", device, ["attnzoo"])
    result |= {"memory": memory.METHODS[device.type], "rows": [], "left_out": [], "fits": []}
    for group in setups(attentions, limits):
        for label in passes:
            allowed = []
            for setup in group:
                reason = refusal(setup, label, result["rows"], limits, free_memory(device))
                if reason is None:
                    allowed.append(setup)
                else:
                    result["left_out"].append({**asdict(setup), "pass": label, "reason": reason})
            result["rows"] += _measure(allowed, label, device, seconds)
            progress(result)
    result["fits"] = fits(result["rows"])
    return result


def refusal(setup: Setup, label: str, rows: list[dict[str, Any]], limits: Limits, free: int) -> str | None:
    """Why a setup is not measured, judged by the largest one before it; None where it can be."""
    before = [r for r in rows if r["attention"] == setup.attention and r["pass"] == label and r["axis"] == "tokens"]
    if not before or setup.axis != "tokens":
        return None
    last = max(before, key=lambda row: row["tokens"])
    growth = (setup.tokens / last["tokens"]) ** 2
    expected = growth * min(last["seconds"])
    if expected > limits.seconds:
        return f"expected to take {expected:.0f} s, the limit is {limits.seconds:g} s"
    needed = growth * (last["peak_bytes"] or 0)
    if needed > MEMORY_SHARE * free:
        return f"expected to need {needed / 2**30:.1f} GiB of {free / 2**30:.1f} GiB free"
    return None


def free_memory(device: torch.device) -> int:
    """Bytes that can be had."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def _measure(group: Sequence[Setup], label: str, device: torch.device, seconds: float) -> list[dict[str, Any]]:
    calls = {setup.attention: _call(*make(setup, device), label) for setup in group}
    samples = interleave(calls, device, seconds, ROUNDS)
    return [
        {
            **asdict(setup),
            "tokens": setup.tokens,
            "pass": label,
            "seconds": samples[setup.attention],
            "peak_bytes": memory.peak(calls[setup.attention], device),
        }
        for setup in group
    ]


def _call(attention: Attention, pyramid: Pyramid, label: str) -> Callable[[], object]:
    queries = pyramid.as_queries()

    def forward() -> Tensor:
        with torch.no_grad():
            return attention(queries, pyramid)

    def training() -> tuple[Tensor, ...]:
        output = attention(queries, pyramid)
        return torch.autograd.grad(output, list(attention.parameters()), torch.ones_like(output), allow_unused=True)

    return forward if label == "forward" else training


def fits(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Exponents of time and of peak memory per attention, axis and pass; against tokens, from 4k on."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["axis"] != "tokens" or row["x"] >= FITTED_FROM:
            groups.setdefault((row["axis"], row["attention"], row["pass"]), []).append(row)
    return [
        {"axis": axis, "attention": name, "pass": label, **{key: _asdict(law) for key, law in _laws(group).items()}}
        for (axis, name, label), group in groups.items()
    ]


def _laws(group: Sequence[dict[str, Any]]) -> dict[str, PowerLaw | None]:
    x = [row["x"] for row in group]
    seconds = [median(row["seconds"]) for row in group]
    peaks = [row["peak_bytes"] for row in group]
    return {"time": power_law(x, seconds), "memory": power_law(x, peaks) if all(peaks) else None}


def _asdict(law: PowerLaw | None) -> dict[str, Any] | None:
    return None if law is None else asdict(law)
