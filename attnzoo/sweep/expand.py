"""Expands the `sweep:` block of an experiment into runs."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnzoo.config.experiment import ExperimentConfig, SweepConfig
from attnzoo.config.load import Experiment, digest, single
from attnzoo.errors import UserError, did_you_mean
from attnzoo.rundir.folder import RunFolder
from attnzoo.schema.labels import flatten, label, text

# Keys that hold for the whole sweep.
NOT_SWEEPABLE = ("name", "task", "description", "output", "launcher", "jobs", "retries", "sweep", "seed")


@dataclass(frozen=True)
class RunSpec:
    """One run of a sweep: what to train, and where. `name` is unique in the sweep, `digest` is that of its config.

    `overrides` maps full keys to the sweep's values; `labels` has those that affect results, by short keys. The seed
    is in neither.
    """

    name: str
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

    Raises UserError if a run's config is invalid; the message names the run.
    """
    base = experiment.config()
    _check_sweep(base.sweep, str(experiment.path))
    seeds = base.sweep.seeds or [base.seed]
    combinations = [
        (overrides, seed)
        for overrides in _combinations(base.sweep)
        for seed in seeds
        if not any(_is_excluded(overrides | {"seed": seed}, rule) for rule in base.sweep.exclude)
    ]
    if not combinations:
        raise UserError(f"{experiment.path}: sweep.exclude removes all runs")
    labels = label([dict(flatten(_without_slurm(overrides))) for overrides, _ in combinations])
    runs = [
        _run_spec(experiment, overrides, labels, seed)
        for (overrides, seed), labels in zip(combinations, labels, strict=True)
    ]
    check_unique(runs, str(experiment.path))
    return runs


def _run_spec(experiment: Experiment, overrides: dict[str, Any], labels: dict[str, Any], seed: int) -> RunSpec:
    parts = [f"{key}={text(value)}" for key, value in (labels | {"seed": seed}).items()]
    name = "-".join(parts).replace("/", "_").replace(" ", "")
    config = single(experiment.config(overrides | {"seed": seed}, f"{experiment.path}: sweep, run {name}"))
    folder = RunFolder(Path(config.output).expanduser() / config.name / name)
    return RunSpec(name, overrides, labels, config, digest(config), folder)


def _without_slurm(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that affect results."""
    return {key: value for key, value in overrides.items() if key.split(".")[0] != "slurm"}


def _combinations(sweep: SweepConfig) -> Iterator[dict[str, Any]]:
    """The product of the grid with the rows of the zip."""
    rows = [dict(zip(sweep.zip, values, strict=True)) for values in zip(*sweep.zip.values(), strict=True)] or [{}]
    for row in rows:
        for values in itertools.product(*sweep.grid.values()):
            yield row | dict(zip(sweep.grid, values, strict=True))


def _is_excluded(overrides: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    return all(overrides[key] == value for key, value in rule.items())


def _check_sweep(sweep: SweepConfig, where: str) -> None:
    for kind, block in (("grid", sweep.grid), ("zip", sweep.zip)):
        for key, values in block.items():
            prefix = f"{where}: sweep.{kind}.{key}"
            if key.split(".")[0] in NOT_SWEEPABLE:
                hint = "; list a sweep's seeds in sweep.seeds" if key == "seed" else ""
                raise UserError(f"{prefix}: {key!r} cannot be swept{hint}")
            if not values:
                raise UserError(f"{prefix} = []: expected at least one value")
    if overlap := sweep.grid.keys() & sweep.zip.keys():
        raise UserError(f"{where}: sweep: {min(overlap)!r} is in both grid and zip")
    lengths = {key: len(values) for key, values in sweep.zip.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise UserError(f"{where}: sweep.zip: expected lists of equal length, but {listed} values")
    if len(set(sweep.seeds)) < len(sweep.seeds):
        raise UserError(f"{where}: sweep.seeds = {sweep.seeds}: duplicate seed")
    _check_exclude(sweep, where)


def _check_exclude(sweep: SweepConfig, where: str) -> None:
    swept = [*sweep.zip, *sweep.grid, "seed"]
    for index, rule in enumerate(sweep.exclude):
        for key, value in rule.items():
            prefix = f"{where}: sweep.exclude[{index}]"
            if key not in swept:
                raise UserError(f"{prefix}: {key!r} is not swept{did_you_mean(key, swept)} (swept: {', '.join(swept)})")
            values: Sequence[Any] = sweep.seeds if key == "seed" else sweep.zip.get(key) or sweep.grid[key]
            if value not in values:
                raise UserError(f"{prefix}: {key} = {value!r} is not among its values {values}")


def check_unique(runs: Sequence[RunSpec], where: str) -> None:
    """Raise UserError if two runs have the same config and seed, or the same name."""
    names: dict[tuple[str, int], str] = {}
    for run in runs:
        key = (run.digest, run.seed)
        if key in names:
            raise UserError(f"{where}: sweep: the runs {names[key]} and {run.name} have the same config")
        names[key] = run.name
    if duplicates := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise UserError(f"{where}: sweep: duplicate run name {duplicates[0]}")
