"""Expands the `sweep:` block of an experiment into runs."""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from attnzoo.config.experiment import ExperimentConfig, SweepConfig
from attnzoo.config.load import Change, Experiment, digest, without_sweep
from attnzoo.errors import UserError, unknown
from attnzoo.paths import user_path
from attnzoo.rundir.folder import RunFolder
from attnzoo.schema.keys import flatten, format_value, shorten_keys
from attnzoo.sweep.check_block import AA_KEY, AA_STREAM, check_block, check_overwritten
from attnzoo.sweep.seeds import SeedPlan, seed_plan
from attnzoo.sweep.variants import BASE, folder_name, named_variants

MAX_RUNS = 10_000


@dataclass(frozen=True)
class RunSpec:
    """One run of a sweep: what to train, and where. `name` is unique in the sweep, `digest` identifies its config.

    `variant_name` is the name without the seed: runs that differ only in the seed share it. `changes` are all keys that
    the sweep sets; `variant` is the name of those from sweep.variants or sweep.one_at_a_time, and `labels` has the
    others that affect results but the seed, by short keys.
    """

    name: str
    variant_name: str
    variant: str | None
    changes: tuple[Change, ...]
    labels: dict[str, Any]
    config: ExperimentConfig
    digest: str
    folder: RunFolder

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def overrides(self) -> dict[str, Any]:
        """Full keys and values of all changes but the seed."""
        return {change.key: change.value for change in self.changes if change.key != "seed"}


@dataclass(frozen=True)
class Sweep:
    """All runs of an experiment, in the order of its file, and how they are compared.

    `variants`: the names of the variants. `baseline`: that of the variant with which others are compared, `aa` that of
    its copy. With a `plan`, `runs` has all runs that may be needed.
    """

    runs: list[RunSpec]
    variants: tuple[str, ...]
    baseline: str
    aa: str | None
    plan: SeedPlan | None


def expand(experiment: Experiment) -> list[RunSpec]:
    """All runs of an experiment, in the order of its file; see `expand_sweep`."""
    return expand_sweep(experiment).runs


def expand_sweep(experiment: Experiment) -> Sweep:
    """The sweep of an experiment; one run if it has none.

    Raises UserError, naming its source, for an invalid sweep, for a run with an invalid config, with its name, and for
    a key on the command line that the sweep would overwrite.
    """
    base = experiment.config()
    sweep = base.sweep
    try:
        variants = named_variants(sweep, experiment.schema)
        check_block(experiment, sweep, variants)
        products = _products(sweep, max(len(variants), 1))
        plan = seed_plan(sweep, max(len(variants), 1) * len(products))
        _check_number(max(len(variants), 1) * len(products) * (plan.at_most if plan else max(len(sweep.seeds), 1)))
        planned = _planned_runs(sweep, variants, products, plan, base.seed)
        baseline = _baseline(sweep, list(dict.fromkeys(run.variant_name for run in planned)))
    except UserError as error:
        raise experiment.locate(error) from None
    copies = [_aa_copy(run) for run in planned if run.variant_name == baseline] if sweep.aa else []
    source = functools.cache(experiment.source)
    runs = []
    for run in [*planned, *copies]:
        name = f"{run.variant_name}-seed={run.seed}" if run.variant_name else f"seed={run.seed}"
        suffix = f", run {name}" if len(planned) > 1 else ""
        changes = tuple(Change(key, value, f"{source(block)}: sweep{suffix}") for key, value, block in run.changes)
        config = without_sweep(experiment.config(changes))
        folder = RunFolder(user_path(config.output) / config.name / name)
        runs.append(RunSpec(name, run.variant_name, run.variant, changes, run.labels, config, digest(config), folder))
    check_overwritten(experiment, base, {run.name: (run.config, run.overrides) for run in runs})
    runs = drop_repeats(runs, experiment)
    names = tuple(dict.fromkeys(run.variant_name for run in runs))
    return Sweep(runs, names, baseline, copies[0].variant_name if copies else None, plan)


class _PlannedRun(NamedTuple):
    """A run before its config is built. `changes`: keys, values and the keys of the sweep that set them."""

    variant: str | None
    labels: dict[str, Any]
    seed: int
    changes: list[tuple[str, Any, str]]
    is_aa_copy: bool = False  # of a variant without a name

    @property
    def variant_name(self) -> str:
        parts = [f"{key}={format_value(value)}" for key, value in self.labels.items()]
        name = [] if self.variant is None else [self.variant]
        return folder_name("-".join([*name, *parts, *(["aa"] if self.is_aa_copy else [])]))


def _planned_runs(
    sweep: SweepConfig,
    variants: Mapping[str, Mapping[str, Any]],
    products: Sequence[dict[str, Any]],
    plan: SeedPlan | None,
    base_seed: int,
) -> list[_PlannedRun]:
    """All runs that are not excluded."""
    listed: list[int] = sweep.seeds if isinstance(sweep.seeds, list) else []
    seeds: list[int] | list[None] = (plan.seeds if plan else listed) or [None]
    combinations: list[tuple[str | None, dict[str, Any], int | None]] = [
        (variant, swept, seed)
        for variant in variants or [None]
        for swept in products
        for seed in seeds
        if not any(_excludes(rule, swept | {"variant": variant, "seed": seed}) for rule in sweep.exclude)
    ]
    if not combinations:
        raise UserError("sweep.exclude removes all runs", key="sweep.exclude")
    labels = shorten_keys([dict(flatten(_without_slurm(swept))) for _, swept, _ in combinations])
    return [
        _PlannedRun(
            variant, short, base_seed if seed is None else seed, list(_changes(sweep, variants, variant, swept, seed))
        )
        for (variant, swept, seed), short in zip(combinations, labels, strict=True)
    ]


def _aa_copy(run: _PlannedRun) -> _PlannedRun:
    """The run with another random stream: see sweep.aa."""
    changes = [*run.changes, (AA_KEY, AA_STREAM, "sweep.aa")]
    if run.variant is not None:
        return run._replace(variant=f"{run.variant}-aa", changes=changes)
    return run._replace(changes=changes, is_aa_copy=True)


def _baseline(sweep: SweepConfig, names: Sequence[str]) -> str:
    if sweep.baseline is None:
        return names[0]
    if folder_name(sweep.baseline) not in names:
        raise unknown("variant", sweep.baseline, names, "sweep.baseline")
    return folder_name(sweep.baseline)


def drop_repeats(runs: Sequence[RunSpec], experiment: Experiment) -> list[RunSpec]:
    """The runs without those of sweep.one_at_a_time that repeat the base.

    Raises UserError if two others have the same config and seed, or the same name.
    """
    if experiment.config().sweep.one_at_a_time:
        bases = {(run.digest, run.seed) for run in runs if run.variant == BASE}
        runs = [run for run in runs if run.variant == BASE or (run.digest, run.seed) not in bases]
    names: dict[tuple[str, int], str] = {}
    for run in runs:
        first = names.setdefault((run.digest, run.seed), run.name)
        if first is not run.name:
            message = f"sweep: the runs {first} and {run.name} have the same config"
            raise experiment.locate(UserError(message, key=_swept_keys(experiment)))
    if duplicates := [name for name, count in Counter(names.values()).items() if count > 1]:
        message = f"sweep: duplicate run name {duplicates[0]}"
        raise experiment.locate(UserError(message, key=_swept_keys(experiment)))
    return list(runs)


def _swept_keys(experiment: Experiment) -> tuple[str, ...]:
    sweep = experiment.config().sweep
    blocks = [block for block in ("variants", "one_at_a_time", "zip", "grid") if getattr(sweep, block)]
    return tuple(f"sweep.{block}.{key}" for block in blocks for key in getattr(sweep, block))


def _changes(
    sweep: SweepConfig,
    variants: Mapping[str, Mapping[str, Any]],
    variant: str | None,
    swept: Mapping[str, Any],
    seed: int | None,
) -> Iterator[tuple[str, Any, str]]:
    """The keys that a run changes, their values and the key of the sweep that sets each."""
    for key, value in variants[variant].items() if variant is not None else ():
        block = f"sweep.one_at_a_time.{key}" if sweep.one_at_a_time else f"sweep.variants.{variant}"
        yield key, value, block
    for key, value in swept.items():
        yield key, value, f"sweep.{'grid' if key in sweep.grid else 'zip'}.{key}"
    if seed is not None:
        yield "seed", seed, "sweep.seeds"


def _check_number(runs: int) -> None:
    if runs > MAX_RUNS:
        raise UserError(f"sweep: {runs:,} runs: expected at most {MAX_RUNS:,}", key="sweep")


def _products(sweep: SweepConfig, num_variants: int) -> list[dict[str, Any]]:
    """The product of the grid with the rows of the zip. Raises UserError for too many with this number of variants."""
    _check_number(num_variants * math.prod(map(len, [*sweep.grid.values(), *[*sweep.zip.values()][:1]])))
    rows = [dict(zip(sweep.zip, values, strict=True)) for values in zip(*sweep.zip.values(), strict=True)] or [{}]
    values = list(itertools.product(*sweep.grid.values()))
    return [row | dict(zip(sweep.grid, items, strict=True)) for row in rows for items in values]


def _excludes(rule: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    return all(values[key] == value for key, value in rule.items())


def _without_slurm(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that affect results."""
    return {key: value for key, value in overrides.items() if key.split(".")[0] != "slurm"}
