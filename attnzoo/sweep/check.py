"""Checks of a `sweep:` block, and of the command line against it."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from os.path import commonprefix
from typing import Any

from attnzoo.config.experiment import ExperimentConfig, SweepConfig
from attnzoo.config.load import COMMAND_LINE, Experiment
from attnzoo.errors import UserError, did_you_mean
from attnzoo.schema.keys import flatten

# Keys that apply to the whole sweep.
NOT_SWEEPABLE = ("name", "task", "description", "output", "launcher", "jobs", "retries", "sweep", "seed", "versions")
NAME = re.compile(r"\w[\w.=,+-]*")


def check_sweep(sweep: SweepConfig, variants: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Raise UserError, naming file and key, if a sweep with these `variants` is invalid."""
    for kind in ("one_at_a_time", "zip", "grid"):
        for key, values in getattr(sweep, kind).items():
            _check_key(key, f"{where}: sweep.{kind}")
            if not values:
                raise UserError(f"{where}: sweep.{kind}.{key} = []: expected at least one value")
    for name in sweep.variants:
        if not NAME.fullmatch(name):
            raise UserError(f"{where}: sweep.variants: {name!r}: expected the name of a folder, without '/' or spaces")
        for key in variants[name]:
            _check_key(key, f"{where}: sweep.variants.{name}")
    if slurm := next((key for key in sweep.one_at_a_time if key.startswith("slurm.")), None):
        raise UserError(f"{where}: sweep.one_at_a_time: {slurm!r} does not affect results")
    _check_overlap(sweep, variants, where)
    lengths = {key: len(values) for key, values in sweep.zip.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise UserError(f"{where}: sweep.zip: expected lists of equal length, but {listed} values")
    if len(set(sweep.seeds)) < len(sweep.seeds):
        raise UserError(f"{where}: sweep.seeds = {sweep.seeds}: duplicate seed")
    _check_exclude(sweep, variants, where)


def _check_key(key: str, prefix: str) -> None:
    if key.split(".")[0] in NOT_SWEEPABLE:
        hint = "; list a sweep's seeds in sweep.seeds" if key == "seed" else ""
        raise UserError(f"{prefix}: {key!r} cannot be swept{hint}")


def _check_overlap(sweep: SweepConfig, variants: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """No key is in both zip and grid, and neither overwrites what a variant sets: both are applied after it."""
    if both := sweep.grid.keys() & sweep.zip.keys():
        raise UserError(f"{where}: sweep: {min(both)!r} is in both grid and zip")
    named = "one_at_a_time" if sweep.one_at_a_time else "variants"
    for kind in ("grid", "zip"):
        for key in getattr(sweep, kind):
            for overrides in variants.values():
                if lost := [leaf for leaf, _ in flatten(overrides) if f"{leaf}.".startswith(f"{key}.")]:
                    raise UserError(f"{where}: sweep: {lost[0]!r} of {named} is overwritten by {key!r} of {kind}")


def _check_exclude(sweep: SweepConfig, variants: Mapping[str, Any], where: str) -> None:
    swept = {"variant": [*variants]} if variants else {}
    swept |= sweep.zip | sweep.grid | {"seed": sweep.seeds}
    for index, rule in enumerate(sweep.exclude):
        prefix = f"{where}: sweep.exclude[{index}]"
        for key, value in rule.items():
            if key not in swept:
                raise UserError(f"{prefix}: {key!r} is not swept{did_you_mean(key, swept)} (swept: {', '.join(swept)})")
            if value not in swept[key]:
                hint = did_you_mean(str(value), variants) if key == "variant" else ""
                raise UserError(f"{prefix}: {key} = {value!r} is not among its values {swept[key]}{hint}")


def check_command_line(
    experiment: Experiment, base: ExperimentConfig, runs: Mapping[str, tuple[ExperimentConfig, Mapping[str, Any]]]
) -> None:
    """Raise UserError for a key on the command line that the sweep overwrites.

    `base` is the config without the sweep's overrides; `runs` has the config and the overrides of each run.
    """
    layers = [layer for layer in experiment.layers if layer.source == COMMAND_LINE]
    items = dict(item for layer in layers for item in flatten(layer.values))
    items = {key: value for key, value in items.items() if not key.startswith("sweep.")}
    if not items:
        return
    before = dict(flatten(dataclasses.asdict(base)))
    for name, (config, overrides) in runs.items():
        after = dict(flatten(dataclasses.asdict(config)))
        for key, value in items.items():
            if key in overrides or (before.get(key, ...) == value and after.get(key, ...) != value):
                raise _overwritten(key, name, base.sweep, overrides)


def _overwritten(key: str, run: str, sweep: SweepConfig, overrides: Iterable[str]) -> UserError:
    if key == "seed":
        kind, values = "seeds", "[SEED, ...]"
    else:
        swept = max(overrides, key=lambda other: len(commonprefix((key, other))))  # noqa: RUF071 - of characters
        blocks = {"grid": sweep.grid, "zip": sweep.zip, "one_at_a_time": sweep.one_at_a_time}
        kind, values = next((kind for kind, block in blocks.items() if swept in block), "variants"), "{...}"
    return UserError(
        f"{COMMAND_LINE}: {key} is overwritten by sweep.{kind} (run {run}); "
        f"replace the sweep with sweep.{kind}={values} or clear it with sweep.{kind}={values[0]}{values[-1]}",
        key=key,
    )
