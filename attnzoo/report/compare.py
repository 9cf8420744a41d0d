"""The comparison of variants: means over seeds, with intervals, beside what each variant costs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnzoo.config.load import NOT_HASHED
from attnzoo.report.comparison import Comparison, Variant
from attnzoo.report.runs import Result, find
from attnzoo.report.statistics import estimate
from attnzoo.rundir.metrics import METRICS
from attnzoo.schema.labels import flatten, label


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare all runs in `folders`. Raises UserError for a folder without runs."""
    results = find(folders)
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.experiment, result.digest), []).append(result)
    options = _differences([group[0] for group in groups.values()])
    variants = [_variant(group, chosen) for group, chosen in zip(groups.values(), options, strict=True)]
    columns = list(dict.fromkeys(column for variant in variants for column in variant.options))
    if "variant" not in columns:  # else they are in the order of the experiment's file
        variants.sort(key=lambda variant: [_order(variant.options.get(column)) for column in columns])
    tasks = frozenset(result.config.task for result in results)
    return Comparison(columns, variants, _notes(variants, results), tasks)


def _variant(group: Sequence[Result], options: dict[str, Any]) -> Variant:
    done = [result for result in group if result.state == "done"]
    keys = [metric.key for metric in METRICS]
    values = {key: [result.metrics[key] for result in done if key in result.metrics] for key in keys}
    return Variant(
        options,
        {key: estimate(numbers) for key, numbers in values.items()},
        tuple(sorted(result.config.seed for result in done)),
        tuple(f"seed {result.config.seed} {result.state}" for result in group if result.state != "done"),
    )


def _differences(results: Sequence[Result]) -> list[dict[str, Any]]:
    """What each config has that is not the same in all, by short labels; the experiment where there are several.

    The name of the variant comes first, if there is one.
    """
    named = any(result.variant is not None for result in results)
    flat = []
    for result in results:
        kept = {key: value for key, value in dataclasses.asdict(result.config).items() if key not in NOT_HASHED}
        flat.append(dict(flatten(kept)) | {"experiment": result.experiment, "variant": result.variant or ""})
    keys = list(dict.fromkeys(["experiment", *(key for config in flat for key in config if key != "variant")]))
    differing = [key for key in keys if any(config.get(key, ...) != flat[0].get(key, ...) for config in flat)]
    shown = [key for key in differing if not _follows_from_a_name(key, flat)]
    if named:
        shown = ["variant", *(key for key in shown if not _follows_from_the_variant(key, flat))]
    return label([{key: config[key] for key in shown if key in config} for config in flat])


def _follows_from_the_variant(key: str, configs: Sequence[dict[str, Any]]) -> bool:
    """Whether a key has one value in each variant of an experiment."""
    variants = {(config["experiment"], config["variant"]) for config in configs}
    found = {(config["experiment"], config["variant"], repr(config.get(key, ...))) for config in configs}
    return key != "experiment" and len(found) == len(variants)


def _follows_from_a_name(key: str, configs: Sequence[dict[str, Any]]) -> bool:
    """Whether a key tells nothing beyond the name of its block, or of one around that.

    Blocks of some names do not take such an option, or one of another type, and where it is of one type it is the same.
    """
    parts = key.split(".")
    owners = [".".join([*parts[:length], "name"]) for length in range(1, len(parts))]
    return any(_follows_from(owner, key, configs) for owner in owners if owner != key)


def _follows_from(owner: str, key: str, configs: Sequence[dict[str, Any]]) -> bool:
    found = {(str(config.get(owner)), type(config.get(key, ...)), repr(config.get(key, ...))) for config in configs}
    names, types, values = (set(column) for column in zip(*found, strict=True))
    return 1 < len(types) == len(values) and 1 < len(names) == len(found)


def _notes(variants: Sequence[Variant], results: Sequence[Result]) -> list[str]:
    notes = []
    counts = sorted({len(variant.seeds) for variant in variants})
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    if counts[-1] > 1:
        meaning = (
            "mean ± 95 % confidence interval (Student's t) over seeds. Differences within the intervals are noise."
        )
    else:
        meaning = "intervals n/a: one seed cannot tell a difference from noise."
    notes.append(f"Finished seeds per variant: {seeds}; {meaning}")
    budgets = sorted({result.steps for result in results if result.state == "done"})
    if len(budgets) == 1:
        notes.append(f"Equal budgets: {budgets[0]} optimiser steps each.")
    elif budgets:
        notes.append(f"Warning: budgets differ ({', '.join(map(str, budgets))} optimiser steps).")
    batches = sorted({result.config.data.batch_size * result.config.train.accumulate for result in results})
    if len(batches) > 1:
        notes.append(f"Warning: images per step differ ({', '.join(map(str, batches))}).")
    if missing := sum(len(variant.unfinished) for variant in variants):
        notes.append(f"{missing} of {len(results)} runs are not finished; they are listed and not averaged.")
    return notes


def _order(value: Any) -> tuple[int, float, str]:
    if isinstance(value, (int, float)):
        return 0, float(value), ""
    return 1, 0.0, str(value)
