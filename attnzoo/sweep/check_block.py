"""Checks the `sweep:` block of an experiment, and the command line against it. See `check_runs` for the runs."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from os.path import commonprefix
from typing import Any

from attnzoo.config.experiment import ExperimentConfig, SweepConfig
from attnzoo.config.load import Experiment
from attnzoo.errors import COMMAND_LINE, UserError, as_yaml, did_you_mean
from attnzoo.schema.keys import flatten

# Keys that apply to the whole sweep.
NOT_SWEEPABLE = ("name", "task", "description", "output", "launcher", "jobs", "retries", "sweep", "seed", "versions")
AA_KEY, AA_STREAM = "train.stream", 1  # what sweep.aa changes
NAME = re.compile(r"\w[\w.=,+-]*")
BLOCKS = {"variants": "variant", "one_at_a_time": "key", "grid": "key", "zip": "key"}  # what each lists


def check_block(experiment: Experiment, sweep: SweepConfig, variants: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError, with its key, if the sweep of an experiment, with these `variants`, is invalid."""
    _check_empty(experiment)
    for kind in ("one_at_a_time", "zip", "grid"):
        for key, values in getattr(sweep, kind).items():
            _check_key(key, f"sweep.{kind}", f"sweep.{kind}.{key}")
            if not values:
                raise UserError(f"sweep.{kind}.{key} = []: expected at least one value", key=f"sweep.{kind}.{key}")
    for name in sweep.variants:
        where = f"sweep.variants.{name}"
        if not NAME.fullmatch(name):
            expected = "expected the name of a folder, without '/' or spaces"
            raise UserError(f"sweep.variants: {name!r}: {expected}", key=where)
        for key in variants[name]:
            _check_key(key, where, f"{where}.{key}")
    if slurm := next((key for key in sweep.one_at_a_time if key.startswith("slurm.")), None):
        key = f"sweep.one_at_a_time.{slurm}"
        raise UserError(f"sweep.one_at_a_time: {slurm!r} does not affect results", key=key)
    _check_overlap(sweep, variants)
    if sweep.aa and AA_KEY in {*sweep.grid, *sweep.zip, *(key for block in variants.values() for key in block)}:
        raise UserError(f"sweep.aa: {AA_KEY} is swept already", key="sweep.aa")
    lengths = {key: len(values) for key, values in sweep.zip.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        message = f"sweep.zip: expected lists of equal length, but {listed} values"
        raise UserError(message, key=tuple(f"sweep.zip.{key}" for key in lengths))
    if isinstance(sweep.seeds, list) and len(set(sweep.seeds)) < len(sweep.seeds):
        raise UserError(f"sweep.seeds = {sweep.seeds}: duplicate seed", key="sweep.seeds")
    _check_exclude(sweep, variants)


def _check_empty(experiment: Experiment) -> None:
    """Refuse an empty block in a file, except one that clears the block of a base."""
    filled = set[str]()
    for layer in experiment.layers:
        sweep = layer.values.get("sweep", {})
        for kind in (kind for kind in BLOCKS if kind in sweep):
            if sweep[kind]:
                filled.add(kind)
            elif kind not in filled and layer.source != COMMAND_LINE:
                message = f"sweep.{kind} = {{}}: expected at least one {BLOCKS[kind]}"
                raise UserError(message, key=f"sweep.{kind}")


def _check_key(key: str, where: str, full_key: str) -> None:
    if key.split(".")[0] in NOT_SWEEPABLE:
        hint = "; list a sweep's seeds in sweep.seeds" if key == "seed" else ""
        raise UserError(f"{where}: {key!r} cannot be swept{hint}", key=full_key)


def _check_overlap(sweep: SweepConfig, variants: Mapping[str, Mapping[str, Any]]) -> None:
    """No key is in both zip and grid, and neither overwrites what a variant sets: both are applied after it."""
    if both := sweep.grid.keys() & sweep.zip.keys():
        key = min(both)
        raise UserError(f"sweep: {key!r} is in both grid and zip", key=(f"sweep.grid.{key}", f"sweep.zip.{key}"))
    named = "one_at_a_time" if sweep.one_at_a_time else "variants"
    for kind in ("grid", "zip"):
        for key in getattr(sweep, kind):
            for name, overrides in variants.items():
                if lost := [leaf for leaf, _ in flatten(overrides) if f"{leaf}.".startswith(f"{key}.")]:
                    setter = f"sweep.variants.{name}" if named == "variants" else f"sweep.{named}"
                    message = f"sweep: {lost[0]!r} of {named} is overwritten by {key!r} of {kind}"
                    raise UserError(message, key=(setter, f"sweep.{kind}.{key}"))


def _check_exclude(sweep: SweepConfig, variants: Mapping[str, Any]) -> None:
    swept = {"variant": [*variants]} if variants else {}
    swept |= sweep.zip | sweep.grid | ({"seed": sweep.seeds} if isinstance(sweep.seeds, list) else {})
    for index, rule in enumerate(sweep.exclude):
        prefix = f"sweep.exclude[{index}]"
        for key, value in rule.items():
            if key not in swept:
                message = f"{prefix}: {key!r} is not swept{did_you_mean(key, swept)} (swept: {', '.join(swept)})"
                raise UserError(message, key="sweep.exclude")
            if value not in swept[key]:
                hint = did_you_mean(str(value), variants) if key == "variant" else ""
                message = f"{prefix}: {key} = {as_yaml(value)} is not among its values {as_yaml(swept[key])}{hint}"
                raise UserError(message, key="sweep.exclude")


def check_overwritten(
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
