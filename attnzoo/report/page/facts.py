"""What was run: configs and their differences, versions, sources, machines, and pictures of the last checkpoints."""

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnzoo.config.load import identity
from attnzoo.errors import plural
from attnzoo.files import read_bytes
from attnzoo.report.comparison import Comparison
from attnzoo.report.environments import UNKNOWN, VERBS
from attnzoo.report.page.series import Series
from attnzoo.report.records import RunRecord
from attnzoo.rundir.folder import RunFolder, parse_json
from attnzoo.schema.keys import flatten, format_value, shorten_keys

PNG = b"\x89PNG\r\n\x1a\n"
MAX_BYTES = 24 * 2**20  # of all pictures of a page
ABSENT = "–"


@dataclass(frozen=True)
class TextTable:
    """A table of text; the first column names the rows."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG file of a run, as a data URL."""

    title: str
    url: str


def key_facts(comparison: Comparison) -> list[tuple[str, str]]:
    """What all runs have in common, and how many there are."""
    configs = [run.config for variant in comparison.variants for run in variant.runs]
    finished = [run for variant in comparison.variants for run in variant.finished]
    seeds = sorted({run.config.seed for run in finished})
    num_runs = sum(len(variant.runs) for variant in comparison.variants)
    facts = {
        "Experiment": _all_of(config.name for config in configs),
        "Task": _all_of(config.task for config in configs),
        "Data": _all_of(config.data.dataset.get("name", "") for config in configs),
        "Budget": _all_of(f"{int(run.final['step']):,} optimiser steps" for run in finished),
        "Images per step": _all_of(config.data.batch_size * config.train.accumulate for config in configs),
        "Runs": plural(len(finished), "finished run") + (f" of {num_runs}" if num_runs > len(finished) else ""),
        "Seeds": _ranges(seeds),
        "CPU hours": _hours(run.cpu_hours for run in finished),
        "GPU hours": _hours(run.gpu_hours for run in finished),
    }
    return [(name, value) for name, value in facts.items() if value]


def _hours(hours: Iterable[float | None]) -> str:
    known = [value for value in hours if value is not None]
    return f"{sum(known):.3g}, of all finished runs" if known else ""


def config_differences(series: Sequence[Series]) -> TextTable | None:
    """The keys in which the variants' configs differ, one row each; None if they do not."""
    values = [dict(flatten(identity(item.variant.runs[0].config))) for item in series]
    keys = list(dict.fromkeys(key for own in values for key in own))
    differing = [key for key in keys if any(own.get(key, ...) != values[0].get(key, ...) for own in values)]
    if not differing:
        return None
    short = shorten_keys([{key: own[key] for key in differing if key in own} for own in values])
    names = list(dict.fromkeys(key for own in short for key in own))
    rows = [[name, *(format_value(own[name]) if name in own else ABSENT for own in short)] for name in names]
    return TextTable(["key", *(item.name for item in series)], rows)


def common_config(series: Sequence[Series]) -> list[tuple[str, str]]:
    """The keys and values that all variants have in common."""
    values = [dict(flatten(identity(item.variant.runs[0].config))) for item in series]
    return [
        (key, format_value(value))
        for key, value in values[0].items()
        if all(key in own and own[key] == value for own in values)
    ]


def environments(comparison: Comparison) -> TextTable | None:
    """The environments of the finished runs: what a run's results depend on besides its config."""
    counts = Counter(
        tuple((environment or {}).get(key, UNKNOWN) for key in VERBS)
        for variant in comparison.variants
        for run in variant.finished
        for environment in run.environments
    )
    if not counts:
        return None
    rows = [[f"{count}", *values] for values, count in counts.most_common()]
    return TextTable(["runs", *VERBS], rows)


def versions(comparison: Comparison) -> str:
    """The installed packages that the finished runs recorded; several versions of one if they differ."""
    found: dict[str, dict[str, None]] = {}
    for run in (run for variant in comparison.variants for run in variant.finished):
        recorded = _environment(run)
        packages = recorded.get("packages")
        own = {"Python": recorded.get("python"), **(packages if isinstance(packages, dict) else {})}
        for name, version in own.items():
            if isinstance(version, str):
                found.setdefault(name, {})[version] = None
    return ", ".join(f"{name} {' and '.join(own)}" for name, own in found.items())


def pictures(item: Series, budget: int) -> list[Picture]:
    """The pictures of the variant's first finished run that has any, of at most `budget` bytes together."""
    for run in item.variant.finished:
        found = []
        for path in sorted(RunFolder(run.source).pictures.glob("*.png")):
            content = _read(path)
            if content.startswith(PNG) and len(content) <= budget:
                budget -= len(content)
                title = path.stem.replace("_", " ").replace("-", " ")
                found.append(Picture(title, f"data:image/png;base64,{base64.b64encode(content).decode()}"))
        if found:
            return found
    return []


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError:
        return b""


def _environment(run: RunRecord) -> dict[str, Any]:
    """environment.json of a run; {} if it has none that can be read."""
    content = parse_json(_read(RunFolder(run.source).environment))
    return content if isinstance(content, dict) else {}


def _all_of(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def _ranges(numbers: Sequence[int]) -> str:
    """`0–9, 12` for 0, 1, … 9 and 12."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}–{last}" for first, last in spans)
