"""Compares variants: mean and confidence interval over seeds, and cost."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.load import digest, identity, load_saved
from attnzoo.errors import UserError, plural, unknown
from attnzoo.report import environments
from attnzoo.report.comparison import Comparison, Variant
from attnzoo.report.environments import TrainedRun
from attnzoo.report.pairs import PairedTable, Scores, pair_variants
from attnzoo.report.runs import RunEntry, SweepPlan, find_plan, find_runs
from attnzoo.report.statistics import mean_ci95
from attnzoo.rundir import attempts
from attnzoo.rundir.folder import RunFolder, check_config
from attnzoo.rundir.metrics import METRICS, PRIMARY_METRICS, Metric, final_values
from attnzoo.schema.keys import flatten, format_value, shorten_keys

Seeds = dict[int, RunFolder]  # the runs of a variant


def compare(folders: Sequence[Path], baseline: str | None = None, margin: float | None = None) -> Comparison:
    """Compare all runs in `folders`.

    `baseline`: the name of a variant, `margin`: see `compare_pairs`; by default those of the sweep, if it has any.
    Raises UserError for a folder without runs, for a duplicate run, and for an unknown baseline.
    """
    variants: dict[tuple[str, str], tuple[ExperimentConfig, RunEntry, Seeds]] = {}
    finals: dict[RunFolder, dict[str, float]] = {}
    rows_of: dict[RunFolder, list[dict[str, float]]] = {}
    states: dict[RunFolder, str] = {}
    left_out: list[str] = []
    for run, entry in find_runs(folders).items():
        try:
            check_config(run.config)
            config, status, metrics = load_saved(run.config), run.read_status(), run.read_metrics()
        except UserError as error:
            left_out.append(f"Left out: {error}")
            continue
        finals[run], states[run], rows_of[run] = final_values(status, metrics), str(status["state"]), metrics
        _, _, seeds = variants.setdefault((config.name, digest(config)), (config, entry, {}))
        if config.seed in seeds:
            raise UserError(f"{run.path}: duplicate run, the same config and seed as {seeds[config.seed].path}")
        seeds[config.seed] = run
    if not variants:
        raise UserError(left_out[0])
    configs = [config for config, _, _ in variants.values()]
    entries = [entry for _, entry, _ in variants.values()]
    options = _varying_options(configs, [entry.variant for entry in entries])
    trained = [
        TrainedRun(index, _name(labels), seed, attempts.environments(run))
        for index, ((_, _, seeds), labels) in enumerate(zip(variants.values(), options, strict=True))
        for seed, run in seeds.items()
        if finals[run]
    ]
    footnotes, marks = environments.footnotes(trained)
    rows = [
        replace(_variant(seeds, finals, states, labels), footnotes=marks.get(index, {}))
        for index, ((_, _, seeds), labels) in enumerate(zip(variants.values(), options, strict=True))
    ]
    plan = find_plan(folders)
    given = baseline if baseline is not None else plan.baseline
    if margin is not None:
        plan = replace(plan, margin=margin)
    paired = None
    if len(variants) > 1 and len({config.task for config in configs}) == 1:
        metric = PRIMARY_METRICS[configs[0].task]
        named = [
            _scores(_unique_name(entry, entries, labels), seeds, finals, rows_of, metric.key)
            for (_, entry, seeds), labels in zip(variants.values(), options, strict=True)
        ]
        paired = _pair(named, given, plan, metric)
    elif baseline is not None:
        raise UserError(f"--baseline {baseline}: one variant, nothing to compare it with")
    columns = list(dict.fromkeys(column for row in rows for column in row.options))
    if "variant" not in columns:  # named variants keep the order of the experiment's file
        rows.sort(key=lambda row: [_sort_key(row.options.get(column)) for column in columns])
    notes = _notes(rows, configs, finals.values()) + footnotes + left_out
    return Comparison(columns, rows, notes, frozenset(config.task for config in configs), paired)


def _unique_name(entry: RunEntry, entries: Sequence[RunEntry], labels: Mapping[str, Any]) -> str:
    """The name of a variant, or its options where several have the same name."""
    unique = sum(other.variant_name == entry.variant_name for other in entries) == 1
    return entry.variant_name if unique and entry.variant_name else _name(labels)


def _scores(
    name: str,
    seeds: Seeds,
    finals: Mapping[RunFolder, Mapping[str, float]],
    rows: Mapping[RunFolder, Sequence[Mapping[str, float]]],
    key: str,
) -> Scores:
    done = {seed: run for seed, run in seeds.items() if finals[run]}
    curves = {seed: [(row["step"], row[key]) for row in rows[run] if key in row] for seed, run in done.items()}
    return Scores(name, {seed: finals[run].get(key, math.nan) for seed, run in done.items()}, curves)


def _pair(variants: Sequence[Scores], baseline: str | None, plan: SweepPlan, metric: Metric) -> PairedTable:
    """All variants against the baseline, by default the first."""
    by_name = {variant.name: variant for variant in variants}
    if baseline is not None and baseline not in by_name:
        raise unknown("variant", baseline, by_name).at("--baseline")
    first = by_name[baseline] if baseline is not None else variants[0]
    others = [variant for variant in variants if variant is not first]
    return pair_variants(
        others, first, metric, is_given=baseline is not None, aa=plan.aa, margin=plan.margin, looks=plan.looks
    )


def _variant(
    seeds: Seeds,
    finals: Mapping[RunFolder, Mapping[str, float]],
    states: Mapping[RunFolder, str],
    options: dict[str, Any],
) -> Variant:
    done = {seed: finals[run] for seed, run in seeds.items() if finals[run]}
    unfinished = [f"seed {seed} {_reason(states[run])}" for seed, run in seeds.items() if seed not in done]
    keys = [metric.key for metric in METRICS]
    values = {key: [final[key] for final in done.values() if key in final] for key in keys}
    estimates = {key: mean_ci95(numbers) for key, numbers in values.items()}
    return Variant(options, estimates, tuple(sorted(done)), tuple(unfinished))


def _name(options: Mapping[str, Any]) -> str:
    """The name of a variant in notes: that in its experiment, or its options."""
    values = {key: format_value(value) for key, value in options.items()}
    name = values.pop("variant", "")
    return ", ".join([*([name] if name else []), *(f"{key}={value}" for key, value in values.items())])


def _reason(state: str) -> str:
    """Why a run without final metrics is not finished."""
    return "without its last evaluation" if state == "done" else state


def _varying_options(configs: Sequence[ExperimentConfig], variants: Sequence[str | None]) -> list[dict[str, Any]]:
    """The options of each config that are not equal in all, by short key; "experiment" if there are several.

    The name of the variant comes first, if any has one; it replaces the options that it determines.
    """
    flat = []
    for config, variant in zip(configs, variants, strict=True):
        flat.append(dict(flatten(identity(config))) | {"experiment": config.name, "variant": variant or ""})
    keys = list(dict.fromkeys(["experiment", *(key for config in flat for key in config if key != "variant")]))
    differing = [key for key in keys if any(config.get(key, ...) != flat[0].get(key, ...) for config in flat)]
    columns = [key for key in differing if not _is_implied_by_name(key, flat)]
    if any(variants):
        columns = ["variant", *(key for key in columns if not _is_implied_by_variant(key, flat))]
    return shorten_keys([{key: config[key] for key in columns if key in config} for config in flat])


def _is_implied_by_variant(key: str, configs: Sequence[dict[str, Any]]) -> bool:
    """Whether a key has one value in each variant of an experiment."""
    variants = {(config["experiment"], config["variant"]) for config in configs}
    values = {(config["experiment"], config["variant"], repr(config.get(key, ...))) for config in configs}
    return key != "experiment" and len(values) == len(variants)


def _is_implied_by_name(key: str, configs: Sequence[dict[str, Any]]) -> bool:
    """Whether a key is fully determined by the `name` of an enclosing block.

    That is so if blocks of some names do not take the option, or take one of another type, and its value is the same
    wherever its type is.
    """
    parts = key.split(".")
    names = [".".join([*parts[:length], "name"]) for length in range(1, len(parts))]
    return any(_is_implied_by(name, key, configs) for name in names if name != key)


def _is_implied_by(name: str, key: str, configs: Sequence[dict[str, Any]]) -> bool:
    triples = {(str(config.get(name)), type(config.get(key, ...)), repr(config.get(key, ...))) for config in configs}
    names, types, values = (set(column) for column in zip(*triples, strict=True))
    return 1 < len(types) == len(values) and 1 < len(names) == len(triples)


def _notes(
    variants: Sequence[Variant], configs: Sequence[ExperimentConfig], finals: Collection[Mapping[str, float]]
) -> list[str]:
    notes = []
    counts = sorted({len(variant.seeds) for variant in variants})
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    if counts[-1] > 1:
        ci_note = (
            "mean ± 95 % confidence interval (Student's t) over seeds. "
            "Overlapping intervals do not show that variants are equal."
        )
    else:
        ci_note = "intervals n/a: one seed cannot tell a difference from noise."
    notes.append(f"Finished seeds per variant: {seeds}; {ci_note}")
    step_counts = sorted({int(final["step"]) for final in finals if final})
    if len(step_counts) == 1:
        notes.append(f"Equal budgets: {step_counts[0]} optimiser steps each.")
    elif step_counts:
        notes.append(f"Warning: budgets differ ({', '.join(map(str, step_counts))} optimiser steps).")
    batches = sorted({config.data.batch_size * config.train.accumulate for config in configs})
    if len(batches) > 1:
        notes.append(f"Warning: images per step differ ({', '.join(map(str, batches))}).")
    if num_unfinished := sum(len(variant.unfinished) for variant in variants):
        verb = "is" if len(finals) == 1 else "are"
        notes.append(f"{num_unfinished} of {plural(len(finals), 'run')} {verb} not finished, excluded from the means.")
    return notes


def _sort_key(value: Any) -> tuple[int, float, str]:
    if isinstance(value, (int, float)):
        return 0, float(value), ""
    return 1, 0.0, str(value)
