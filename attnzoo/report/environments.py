"""Footnotes of a comparison on runs trained in different environments, so that they are not mixed silently."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

VERBS = {"sources": "differ", "torch": "differs", "operators": "differ", "device": "differs", "threads": "differ"}
UNKNOWN = "unknown"  # in Variant.footnotes: runs without a record
MAX_VARIANTS = 5  # named in a footnote

Value = tuple[str, ...]  # several if a run was resumed in another environment


class TrainedRun(NamedTuple):
    """A finished run: the index and the name of its variant, its seed, and `attempts.environments` of it."""

    variant: int
    name: str
    seed: int
    environments: Sequence[Mapping[str, str] | None]


def footnotes(runs: Sequence[TrainedRun]) -> tuple[list[str], dict[int, dict[str, int]]]:
    """The footnotes, and those of each variant that they concern: what differs -> number of the footnote.

    A run differs if its value is not that of most runs, or changed between its attempts. Runs without a record are
    not compared but named.
    """
    notes: list[str] = []
    marks: dict[int, dict[str, int]] = {}
    known = [run for run in runs if None not in run.environments]
    for key, verb in VERBS.items():
        values = [_value(run, key) for run in known]
        counts = Counter(values).most_common()
        if len(counts) < 2 and all(len(value) == 1 for value, _ in counts):
            continue
        usual = next((value for value, _ in counts if len(value) == 1), None)
        parts = []
        for value, count in sorted(counts, key=lambda item: item[0] != usual):
            differing = [run for run, own in zip(known, values, strict=True) if own == value != usual]
            where = f": {_names(differing)}" if differing else ""
            parts.append(f"{_runs(count)} with {', then '.join(value)}{where}")
            _mark(marks, differing, key, len(notes) + 1)
        notes.append(f"[{len(notes) + 1}] {key} {verb}: {'; '.join(parts)}")
    unknown = [run for run in runs if None in run.environments]
    what = f"{', '.join(VERBS)} {UNKNOWN}, not recorded"
    if known and unknown:
        notes.append(f"[{len(notes) + 1}] {what}: {_runs(len(unknown))}: {_names(unknown)}")
        _mark(marks, unknown, UNKNOWN, len(notes))
    elif unknown:
        notes.append(f"All runs: {what}.")
    return notes, marks


def _value(run: TrainedRun, key: str) -> Value:
    return tuple(dict.fromkeys((environment or {}).get(key, UNKNOWN) for environment in run.environments))


def _mark(marks: dict[int, dict[str, int]], runs: Sequence[TrainedRun], key: str, number: int) -> None:
    for run in runs:
        marks.setdefault(run.variant, {})[key] = number


def _runs(count: int) -> str:
    return f"{count} run{'s' if count > 1 else ''}"


def _names(runs: Sequence[TrainedRun]) -> str:
    """`seed 2 of deform, seeds 0 and 1 of dense`."""
    seeds: dict[tuple[int, str], list[int]] = {}
    for run in runs:
        seeds.setdefault((run.variant, run.name), []).append(run.seed)
    named = list(seeds.items())[:MAX_VARIANTS]
    parts = [
        f"seed{'s' if len(numbers) > 1 else ''} {' '.join(map(str, sorted(numbers)))}{f' of {name}' if name else ''}"
        for (_, name), numbers in named
    ]
    rest = len(runs) - sum(len(numbers) for _, numbers in named)
    return ", ".join(parts) + (f" and {_runs(rest)} more" if rest else "")
