"""Compares variants: mean and confidence interval over seeds, and cost."""

import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.load import identity
from attnzoo.errors import UserError, plural, unknown
from attnzoo.paths import real_path, user_path
from attnzoo.report import environments
from attnzoo.report.comparison import Comparison, Variant
from attnzoo.report.environments import TrainedRun
from attnzoo.report.missing_costs import missing_costs
from attnzoo.report.pairs import PairedTable, Scores, pair_variants
from attnzoo.report.records import LEFT_OUT, RunRecord, read_records, with_digests
from attnzoo.report.runs import RunEntry, SweepPlan, find_plan
from attnzoo.report.statistics import mean_ci95
from attnzoo.rundir.costs import Costs, read_costs
from attnzoo.rundir.metrics import METRICS, PRIMARY_METRICS
from attnzoo.schema.keys import flatten, format_value, shorten_keys

_DATASET = "data.dataset.name"


@dataclass(frozen=True)
class _VariantRuns:
    """The runs of a variant by seed, all with the same config but the seed; `labels` has the options that vary."""

    config: ExperimentConfig
    entry: RunEntry
    seeds: dict[int, RunRecord]
    labels: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> dict[int, RunRecord]:
        return {seed: run for seed, run in self.seeds.items() if run.final}


def compare(
    folders: Sequence[Path], baseline: str | None = None, margin: float | None = None, target: float | None = None
) -> Comparison:
    """Compare all runs in `folders`, of runs or with a results.json.

    `baseline`: the name of a variant, `margin`: see `compare_pairs`; by default those of the sweep, if it has any.
    `target`: the score whose steps are compared; by default 90 % of the baseline's.
    Raises UserError for a folder without runs, for a duplicate run, and for an unknown baseline.
    """
    plan = find_plan(folders)
    records, left_out = read_records(folders)
    if not records and left_out:
        raise UserError(left_out[0])
    variants, notes = _group(records, plan)
    configs = [variant.config for variant in variants]
    options = varying_options(configs, [variant.entry.variant for variant in variants])
    variants = [replace(variant, labels=labels) for variant, labels in zip(variants, options, strict=True)]
    trained = [
        TrainedRun(index, _name(variant.labels), seed, run.environments)
        for index, variant in enumerate(variants)
        for seed, run in variant.done.items()
    ]
    footnotes, marks = environments.footnotes(trained)
    names = _names(variants)
    rows = [
        replace(_variant(variant), name=name, footnotes=marks.get(index, {}))
        for index, (name, variant) in enumerate(zip(names, variants, strict=True))
    ]
    if margin is not None:
        plan = replace(plan, margin=margin)
    paired = None
    is_paired = len(variants) > 1 and len({(config.task, config.data.dataset["name"]) for config in configs}) == 1
    if baseline is not None and not is_paired:
        raise UserError(f"--baseline {baseline}: expected several variants of one task and data set to compare")
    if baseline is not None:
        if baseline not in names:
            raise unknown("variant", baseline, names).at("--baseline")
        plan = replace(plan, baseline=baseline)
    elif plan.baseline not in names:  # of one sweep, while another has a variant of that name
        plan = replace(plan, baseline=None)
    if is_paired:
        paired = _pair(variants, plan, target)
    columns = list(dict.fromkeys(column for row in rows for column in row.options))
    if "variant" not in columns:  # named variants keep the order of the experiment's file
        rows.sort(key=lambda row: [_sort_key(row.options.get(column)) for column in columns])
    finals = [run.final for variant in variants for run in variant.seeds.values()]
    costs, unreadable = _find_costs(folders)
    if plan.costs and costs is None and len(variants) > 1:
        notes += missing_costs(run for variant in variants for run in variant.seeds.values())
    warnings = _warnings(rows, configs, finals) + footnotes + left_out + unreadable
    notes = _notes(rows, finals) + notes + warnings
    tasks = frozenset(config.task for config in configs)
    return Comparison(columns, rows, notes, tasks, paired, tuple(warnings), costs)


def _find_costs(folders: Iterable[Path]) -> tuple[Costs | None, list[str]]:
    """The costs of the first sweep in `folders` that has any, and why they cannot be read."""
    for folder in folders:
        below = (path for path in sorted(folder.glob("*/")) if os.access(path, os.X_OK, effective_ids=True))
        for sweep in (folder, real_path(folder).parent, *below):
            try:
                if costs := read_costs(sweep):
                    return costs, []
            except UserError as error:
                return None, [f"{LEFT_OUT}{error}"]
    return None, []


def _group(records: Sequence[RunRecord], plan: SweepPlan) -> tuple[list[_VariantRuns], list[str]]:
    """The runs by variant, with those of `plan.include` that have the config of one, and notes on the latter."""
    variants: dict[tuple[str, str], _VariantRuns] = {}
    for record in records:
        key = (record.config.name, record.digest)
        variant = variants.setdefault(key, _VariantRuns(record.config, record.entry, {}))
        if record.config.seed in variant.seeds:
            first = variant.seeds[record.config.seed]
            raise UserError(f"{record.source}: duplicate run, the same config and seed as {first.source}")
        variant.seeds[record.config.seed] = record
    by_digest = {digest: variant for (_, digest), variant in variants.items()}
    notes = []
    for folder in plan.include:
        included = [run for run in read_records([user_path(folder)])[0] if run.final]
        used = with_digests(included, {*by_digest, *plan.digests})
        for run in used:
            variant = by_digest.setdefault(run.digest, _VariantRuns(run.config, run.entry, {}))
            variant.seeds.setdefault(run.config.seed, run)
        notes.append(f"Included: {len(used)} of {plural(len(included), 'run')} of {folder}; others have other configs.")
    if not notes:
        return list(variants.values()), []
    order = {digest: index for index, digest in enumerate(plan.digests)}
    ordered = sorted(by_digest, key=lambda digest: order.get(digest, len(order)))
    return [by_digest[digest] for digest in ordered], notes


def _pair(variants: Sequence[_VariantRuns], plan: SweepPlan, target: float | None) -> PairedTable:
    """All variants against the baseline, by default the first."""
    metric = PRIMARY_METRICS[variants[0].config.task]
    scores = [_scores(name, variant, metric.key) for name, variant in zip(_names(variants), variants, strict=True)]
    by_name = {variant.name: variant for variant in scores}
    baseline = by_name[plan.baseline] if plan.baseline is not None else scores[0]
    return pair_variants(
        [variant for variant in scores if variant is not baseline],
        baseline,
        metric,
        is_given=plan.baseline is not None,
        aa=plan.aa,
        margin=plan.margin,
        looks=plan.looks,
        target=target,
    )


def _names(variants: Sequence[_VariantRuns]) -> list[str]:
    """The name of each variant, or its options where several have the same name."""
    counts = Counter(variant.entry.variant_name for variant in variants)
    return [
        variant.entry.variant_name if counts[variant.entry.variant_name] == 1 else _name(variant.labels)
        for variant in variants
    ]


def _scores(name: str, variant: _VariantRuns, key: str) -> Scores:
    final = {seed: run.final.get(key, math.nan) for seed, run in variant.done.items()}
    curves = {
        seed: [(row["step"], row[key]) for row in run.metrics if key in row] for seed, run in variant.done.items()
    }
    return Scores(name, final, curves)


def _variant(variant: _VariantRuns) -> Variant:
    done = variant.done
    unfinished = [f"seed {seed} {run.status['state']}" for seed, run in variant.seeds.items() if seed not in done]
    finals = [run.final for run in done.values()]
    estimates = {
        metric.key: mean_ci95([final[metric.key] for final in finals if metric.key in final]) for metric in METRICS
    }
    return Variant(
        variant.labels,
        estimates,
        tuple(sorted(done)),
        tuple(unfinished),
        cpu_hours=_total(run.cpu_hours for run in done.values()),
        gpu_hours=_total(run.gpu_hours for run in done.values()),
        digest=next(iter(variant.seeds.values())).digest,
        runs=tuple(variant.seeds[seed] for seed in sorted(variant.seeds)),
    )


def _total(hours: Iterable[float | None]) -> float | None:
    known = [value for value in hours if value is not None]
    return sum(known) if known else None


def _name(options: Mapping[str, Any]) -> str:
    """The name of a variant in notes: that in its experiment, or its options."""
    values = {key: format_value(value) for key, value in options.items()}
    name = values.pop("variant", "")
    return ", ".join([*([name] if name else []), *(f"{key}={value}" for key, value in values.items())])


def varying_options(configs: Sequence[ExperimentConfig], variants: Sequence[str | None]) -> list[dict[str, Any]]:
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


def _notes(variants: Sequence[Variant], finals: Collection[Mapping[str, float]]) -> list[str]:
    counts = sorted({len(variant.seeds) for variant in variants})
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    if counts[-1] > 1:
        ci_note = (
            "mean ± 95 % confidence interval (Student's t) over seeds. "
            "Overlapping intervals do not show that variants are equal."
        )
    else:
        ci_note = "intervals n/a: one seed cannot tell a difference from noise."
    notes = [f"Finished seeds per variant: {seeds}; {ci_note}"]
    if len(step_counts := _step_counts(finals)) == 1:
        notes.append(f"Equal budgets: {step_counts[0]} optimiser steps each.")
    return notes


def _warnings(
    variants: Sequence[Variant], configs: Sequence[ExperimentConfig], finals: Collection[Mapping[str, float]]
) -> list[str]:
    """What is not equal in all runs, or missing."""
    warnings = []
    if len(step_counts := _step_counts(finals)) > 1:
        warnings.append(f"Warning: budgets differ ({', '.join(map(str, step_counts))} optimiser steps).")
    batches = sorted({config.data.batch_size * config.train.accumulate for config in configs})
    if len(batches) > 1:
        warnings.append(f"Warning: images per step differ ({', '.join(map(str, batches))}).")
    warnings += _data_differences(configs)
    if num_unfinished := sum(len(variant.unfinished) for variant in variants):
        verb = "is" if len(finals) == 1 else "are"
        warnings.append(
            f"{num_unfinished} of {plural(len(finals), 'run')} {verb} not finished, excluded from the means."
        )
    return warnings


def _data_differences(configs: Sequence[ExperimentConfig]) -> list[str]:
    """Options of one data set that differ, and that there are several; several probes are meant."""
    by_name: dict[Any, list[dict[str, Any]]] = {}
    for config in configs:
        options = dict(flatten({"data": {"dataset": config.data.dataset}}))
        by_name.setdefault(options.pop(_DATASET, None), []).append(options)
    found = {} if len(by_name) < 2 or configs[0].task == "probe" else {_DATASET: list(by_name)}
    for data in by_name.values():
        for key in dict.fromkeys(key for options in data for key in options):
            values = list(dict.fromkeys(format_value(options.get(key)) for options in data))
            if len(values) > 1:
                found[key] = list(dict.fromkeys([*found.get(key, []), *values]))
    return [
        f"Warning: {key} differs ({', '.join(values)}): scores are not of the same data."
        for key, values in found.items()
    ]


def _step_counts(finals: Collection[Mapping[str, float]]) -> list[int]:
    return sorted({int(final["step"]) for final in finals if final})


def _sort_key(value: Any) -> tuple[int, float, str]:
    if isinstance(value, (int, float)):
        return 0, float(value), ""
    return 1, 0.0, str(value)
