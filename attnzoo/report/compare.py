"""The comparison of variants: means over seeds, with intervals, beside what each variant costs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnzoo.config.load import NOT_HASHED
from attnzoo.report.comparison import Comparison, Variant
from attnzoo.report.runs import Result, find
from attnzoo.report.statistics import mean_ci95
from attnzoo.rundir.metrics import METRICS
from attnzoo.schema.labels import flatten, label


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare all runs in `folders`. Raises UserError for a folder without runs."""
    results = find(folders)
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.experiment, result.digest), []).append(result)
    options = _varying_options([group[0] for group in groups.values()])
    variants = [_variant(group, labels) for group, labels in zip(groups.values(), options, strict=True)]
    columns = list(dict.fromkeys(column for variant in variants for column in variant.options))
    variants.sort(key=lambda variant: [_sort_key(variant.options.get(column)) for column in columns])
    tasks = frozenset(result.config.task for result in results)
    return Comparison(columns, variants, _notes(variants, results), tasks)


def _variant(group: Sequence[Result], options: dict[str, Any]) -> Variant:
    done = [result for result in group if result.state == "done"]
    keys = [metric.key for metric in METRICS]
    values = {key: [result.metrics[key] for result in done if key in result.metrics] for key in keys}
    return Variant(
        options,
        {key: mean_ci95(numbers) for key, numbers in values.items()},
        tuple(sorted(result.config.seed for result in done)),
        tuple(f"seed {result.config.seed} {result.state}" for result in group if result.state != "done"),
    )


def _varying_options(results: Sequence[Result]) -> list[dict[str, Any]]:
    """What each config has that is not the same in all, by short labels; the experiment where there are several."""
    flat = []
    for result in results:
        kept = {key: value for key, value in dataclasses.asdict(result.config).items() if key not in NOT_HASHED}
        flat.append(dict(flatten(kept)) | {"experiment": result.experiment})
    keys = list(dict.fromkeys(["experiment", *(key for config in flat for key in config)]))
    differing = [key for key in keys if any(config.get(key, ...) != flat[0].get(key, ...) for config in flat)]
    shown = [key for key in differing if not _is_implied_by_name(key, flat)]
    return label([{key: config[key] for key in shown if key in config} for config in flat])


def _is_implied_by_name(key: str, configs: Sequence[dict[str, Any]]) -> bool:
    """Whether a key tells nothing beyond the name of its block, or of one around that.

    Blocks of some names do not take such an option, or one of another type, and where it is of one type it is the same.
    """
    parts = key.split(".")
    owners = [".".join([*parts[:length], "name"]) for length in range(1, len(parts))]
    return any(_is_implied_by(owner, key, configs) for owner in owners if owner != key)


def _is_implied_by(owner: str, key: str, configs: Sequence[dict[str, Any]]) -> bool:
    found = {(str(config.get(owner)), type(config.get(key, ...)), repr(config.get(key, ...))) for config in configs}
    names, types, values = (set(column) for column in zip(*found, strict=True))
    return 1 < len(types) == len(values) and 1 < len(names) == len(found)


def _notes(variants: Sequence[Variant], results: Sequence[Result]) -> list[str]:
    notes = []
    counts = sorted({len(variant.seeds) for variant in variants})
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    if counts[-1] > 1:
        ci_note = (
            "mean ± 95 % confidence interval (Student's t) over seeds. Differences within the intervals are noise."
        )
    else:
        ci_note = "intervals n/a: one seed cannot tell a difference from noise."
    notes.append(f"Finished seeds per variant: {seeds}; {ci_note}")
    step_counts = sorted({result.steps for result in results if result.state == "done"})
    if len(step_counts) == 1:
        notes.append(f"Equal budgets: {step_counts[0]} optimiser steps each.")
    elif step_counts:
        notes.append(f"Warning: budgets differ ({', '.join(map(str, step_counts))} optimiser steps).")
    batches = sorted({result.config.data.batch_size * result.config.train.accumulate for result in results})
    if len(batches) > 1:
        notes.append(f"Warning: images per step differ ({', '.join(map(str, batches))}).")
    if num_unfinished := sum(len(variant.unfinished) for variant in variants):
        notes.append(f"{num_unfinished} of {len(results)} runs are not finished; they are listed and not averaged.")
    return notes


def _sort_key(value: Any) -> tuple[int, float, str]:
    if isinstance(value, (int, float)):
        return 0, float(value), ""
    return 1, 0.0, str(value)
