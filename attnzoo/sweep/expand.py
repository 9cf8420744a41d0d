"""Expands the `sweep:` block of an experiment into runs."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnzoo.config.experiment import ExperimentConfig, SweepConfig
from attnzoo.config.load import Experiment, digest, without_sweep
from attnzoo.errors import UserError
from attnzoo.rundir.folder import RunFolder
from attnzoo.schema.keys import flatten, format_value, shorten_keys
from attnzoo.sweep.check import check_command_line, check_sweep
from attnzoo.sweep.variants import BASE, named_variants


@dataclass(frozen=True)
class RunSpec:
    """One run of a sweep: what to train, and where. `name` is unique in the sweep, `digest` identifies its config.

    `overrides` maps full keys to all values that the sweep sets but the seed; `variant` is the name of those from
    sweep.variants or sweep.one_at_a_time, and `labels` has the others that affect results, by short keys.
    """

    name: str
    variant: str | None
    overrides: dict[str, Any]
    labels: dict[str, Any]
    config: ExperimentConfig
    digest: str
    folder: RunFolder

    @property
    def seed(self) -> int:
        return self.config.seed


def expand(experiment: Experiment) -> list[RunSpec]:
    """All runs of an experiment, in the order of its file; one run if it has no sweep.

    Raises UserError if a run's config is invalid, naming the run, and for a key on the command line that the sweep
    would overwrite.
    """
    base = experiment.config()
    sweep, where = base.sweep, str(experiment.path)
    variants = named_variants(sweep, experiment.schema, where)
    check_sweep(sweep, variants, where)
    combinations = [
        (variant, swept, seed)
        for variant in variants or [None]
        for swept in _combinations(sweep)
        for seed in sweep.seeds or [base.seed]
        if not any(_excludes(rule, swept | {"variant": variant, "seed": seed}) for rule in sweep.exclude)
    ]
    if not combinations:
        raise UserError(f"{where}: sweep.exclude removes all runs", key="sweep.exclude")
    labels = shorten_keys([dict(flatten(_without_slurm(swept))) for _, swept, _ in combinations])
    runs = []
    for (variant, swept, seed), short in zip(combinations, labels, strict=True):
        overrides = (variants[variant] if variant is not None else {}) | swept
        runs.append(_run_spec(experiment, variant, overrides, short, seed))
    check_command_line(experiment, base, {run.name: (run.config, run.overrides) for run in runs})
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
            raise UserError(f"{experiment.path}: sweep: the runs {first} and {run.name} have the same config")
    if duplicates := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise UserError(f"{experiment.path}: sweep: duplicate run name {duplicates[0]}")
    return list(runs)


def _run_spec(
    experiment: Experiment, variant: str | None, overrides: dict[str, Any], labels: dict[str, Any], seed: int
) -> RunSpec:
    parts = [f"{key}={format_value(value)}" for key, value in (labels | {"seed": seed}).items()]
    name = "-".join([variant, *parts] if variant is not None else parts).replace("/", "_").replace(" ", "")
    config = without_sweep(experiment.config(overrides | {"seed": seed}, f"{experiment.path}: sweep, run {name}"))
    folder = RunFolder(Path(config.output).expanduser() / config.name / name)
    return RunSpec(name, variant, overrides, labels, config, digest(config), folder)


def _combinations(sweep: SweepConfig) -> Iterator[dict[str, Any]]:
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
