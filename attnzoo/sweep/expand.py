"""Expands the `sweep:` block of an experiment into runs."""

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnzoo.config.experiment import ExperimentConfig, SweepConfig
from attnzoo.config.load import Change, Experiment, digest, without_sweep
from attnzoo.errors import UserError
from attnzoo.rundir.folder import RunFolder
from attnzoo.schema.keys import flatten, format_value, shorten_keys
from attnzoo.sweep.check_block import check_block, check_overwritten
from attnzoo.sweep.variants import BASE, named_variants


@dataclass(frozen=True)
class RunSpec:
    """One run of a sweep: what to train, and where. `name` is unique in the sweep, `digest` identifies its config.

    `changes` are all keys that the sweep sets; `variant` is the name of those from sweep.variants or
    sweep.one_at_a_time, and `labels` has the others that affect results but the seed, by short keys.
    """

    name: str
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


def expand(experiment: Experiment) -> list[RunSpec]:
    """All runs of an experiment, in the order of its file; one run if it has no sweep.

    Raises UserError, naming its source, for an invalid sweep, for a run with an invalid config, with its name, and for
    a key on the command line that the sweep would overwrite.
    """
    base = experiment.config()
    sweep = base.sweep
    try:
        variants = named_variants(sweep, experiment.schema)
        check_block(experiment, sweep, variants)
        combinations = _combinations(sweep, variants)
    except UserError as error:
        raise experiment.locate(error) from None
    source = functools.cache(experiment.source)
    labels = shorten_keys([dict(flatten(_without_slurm(swept))) for _, swept, _ in combinations])
    runs = []
    for (variant, swept, seed), short in zip(combinations, labels, strict=True):
        name = _run_name(variant, short, base.seed if seed is None else seed)
        suffix = f", run {name}" if len(combinations) > 1 else ""
        changes = [
            Change(key, value, f"{source(block)}: sweep{suffix}")
            for key, value, block in _changes(sweep, variants, variant, swept, seed)
        ]
        config = without_sweep(experiment.config(changes))
        folder = RunFolder(Path(config.output).expanduser() / config.name / name)
        runs.append(RunSpec(name, variant, tuple(changes), short, config, digest(config), folder))
    check_overwritten(experiment, base, {run.name: (run.config, run.overrides) for run in runs})
    return drop_repeats(runs, experiment)


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


def _run_name(variant: str | None, labels: Mapping[str, Any], seed: int) -> str:
    parts = [f"{key}={format_value(value)}" for key, value in {**labels, "seed": seed}.items()]
    return "-".join([variant, *parts] if variant is not None else parts).replace("/", "_").replace(" ", "")


def _combinations(
    sweep: SweepConfig, variants: Mapping[str, Any]
) -> list[tuple[str | None, dict[str, Any], int | None]]:
    """Variant, swept keys and seed of every run that is not excluded; None for a sweep without variants or seeds."""
    seeds: list[int] | list[None] = sweep.seeds or [None]
    found: list[tuple[str | None, dict[str, Any], int | None]] = [
        (variant, swept, seed)
        for variant in variants or [None]
        for swept in _products(sweep)
        for seed in seeds
        if not any(_excludes(rule, swept | {"variant": variant, "seed": seed}) for rule in sweep.exclude)
    ]
    if not found:
        raise UserError("sweep.exclude removes all runs", key="sweep.exclude")
    return found


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


def _products(sweep: SweepConfig) -> Iterator[dict[str, Any]]:
    """The product of the grid with the rows of the zip."""
    rows = [dict(zip(sweep.zip, values, strict=True)) for values in zip(*sweep.zip.values(), strict=True)] or [{}]
    for row in rows:
        for values in itertools.product(*sweep.grid.values()):
            yield row | dict(zip(sweep.grid, values, strict=True))


def _excludes(rule: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    return all(values[key] == value for key, value in rule.items())


def _without_slurm(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that affect results."""
    return {key: value for key, value in overrides.items() if key.split(".")[0] != "slurm"}
