"""From the `sweep:` block to variants and seeds."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnzoo.config.experiment import ExperimentConfig, SweepConfig
from attnzoo.config.load import Experiment, digest, without_sweep
from attnzoo.errors import UserError, did_you_mean
from attnzoo.schema.keys import flatten, format_value, shorten_keys

# What belongs to the whole sweep and cannot differ between its runs.
FIXED = ("name", "task", "description", "output", "launcher", "jobs", "retries", "sweep", "seed")


@dataclass(frozen=True)
class RunSpec:
    """One run of a sweep. `name` is readable and tells it from the others; `digest` is that of its config.

    `changes` maps full keys to the sweep's values, `options` those that shape results by their short labels; neither
    has the seed.
    """

    name: str
    changes: dict[str, Any]
    options: dict[str, Any]
    config: ExperimentConfig
    digest: str

    @property
    def seed(self) -> int:
        return self.config.seed


def expand(experiment: Experiment) -> list[RunSpec]:
    """All runs of an experiment, in the order of its file; one run if it has no sweep.

    Raises UserError, naming the run, for whatever in a run's config is not allowed.
    """
    base = experiment.config()
    _check(base.sweep, str(experiment.path))
    seeds = base.sweep.seeds or [base.seed]
    chosen = [
        (changes, seed)
        for changes in _combinations(base.sweep)
        for seed in seeds
        if not any(_matches(rule, changes | {"seed": seed}) for rule in base.sweep.exclude)
    ]
    if not chosen:
        raise UserError(f"{experiment.path}: sweep.exclude leaves no run")
    variants = [dict(flatten(_of_results(changes))) for changes, _ in chosen]
    labels = shorten_keys(variants)
    runs = [_make(experiment, changes, options, seed) for (changes, seed), options in zip(chosen, labels, strict=True)]
    check_unique(runs, str(experiment.path))
    return runs


def _make(experiment: Experiment, changes: dict[str, Any], options: dict[str, Any], seed: int) -> RunSpec:
    parts = [f"{key}={format_value(value)}" for key, value in (options | {"seed": seed}).items()]
    name = "-".join(parts).replace("/", "_").replace(" ", "")
    config = without_sweep(experiment.config(changes | {"seed": seed}, f"{experiment.path}: sweep, run {name}"))
    return RunSpec(name, changes, options, config, digest(config))


def _of_results(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes without what a run asks of a cluster, which may go side by side with them."""
    return {key: value for key, value in changes.items() if key.split(".")[0] != "slurm"}


def _combinations(sweep: SweepConfig) -> Iterator[dict[str, Any]]:
    """Every combination of the grid, each with every row of the zipped keys."""
    rows = [dict(zip(sweep.zip, values, strict=True)) for values in zip(*sweep.zip.values(), strict=True)] or [{}]
    for row in rows:
        for values in itertools.product(*sweep.grid.values()):
            yield row | dict(zip(sweep.grid, values, strict=True))


def _matches(rule: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
    return all(changes[key] == value for key, value in rule.items())


def _check(sweep: SweepConfig, where: str) -> None:
    for kind, block in (("grid", sweep.grid), ("zip", sweep.zip)):
        for key, values in block.items():
            place = f"{where}: sweep.{kind}.{key}"
            if key.split(".")[0] in FIXED:
                hint = "; a sweep's seeds are listed in sweep.seeds" if key == "seed" else ""
                raise UserError(f"{place}: {key!r} cannot differ between the runs of a sweep{hint}")
            if not values:
                raise UserError(f"{place}: an empty list leaves nothing to run")
    if both := sweep.grid.keys() & sweep.zip.keys():
        raise UserError(f"{where}: sweep: {min(both)!r} stands in both grid and zip")
    lengths = {key: len(values) for key, values in sweep.zip.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise UserError(f"{where}: sweep.zip: expected lists of one length, but {listed} values")
    if len(set(sweep.seeds)) < len(sweep.seeds):
        raise UserError(f"{where}: sweep.seeds = {sweep.seeds}: a seed stands twice")
    _check_exclude(sweep, where)


def _check_exclude(sweep: SweepConfig, where: str) -> None:
    swept = [*sweep.zip, *sweep.grid, "seed"]
    for index, rule in enumerate(sweep.exclude):
        for key, value in rule.items():
            place = f"{where}: sweep.exclude[{index}]"
            if key not in swept:
                raise UserError(f"{place}: {key!r} is not swept{did_you_mean(key, swept)} (swept: {', '.join(swept)})")
            listed: Sequence[Any] = sweep.seeds if key == "seed" else sweep.zip.get(key) or sweep.grid[key]
            if value not in listed:
                raise UserError(f"{place}: {key} = {value!r} is not among its values {listed}")


def check_unique(runs: Sequence[RunSpec], where: str) -> None:
    """Two runs of one config and seed would share results; two of one name, a folder."""
    configs: dict[tuple[str, int], str] = {}
    for run in runs:
        key = (run.digest, run.seed)
        if key in configs:
            raise UserError(f"{where}: sweep: the runs {configs[key]} and {run.name} have the same config")
        configs[key] = run.name
    if twice := [name for name, count in Counter(configs.values()).items() if count > 1]:
        raise UserError(f"{where}: sweep: two runs are called {twice[0]}")
