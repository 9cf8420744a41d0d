"""From experiment files, presets and overrides to a typed config, and back to a file that can be run again."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

from attnzoo.config.experiment import EXPERIMENTS, PRESET_FAMILY, ExperimentConfig, SweepConfig
from attnzoo.config.files import find, find_profile, layers, shown
from attnzoo.config.slurm import check_slurm
from attnzoo.engine.config import TrainConfig
from attnzoo.errors import UserError, unknown
from attnzoo.models.presets import preset_chain
from attnzoo.rundir.folder import atomic_write
from attnzoo.schema import yaml12
from attnzoo.schema.labels import flatten
from attnzoo.schema.merge import Layer, Schema, Settings, nested

COMMAND_LINE = "command line"
# What a run's results do not depend on, or what tells the runs of one variant apart.
NOT_HASHED = ("name", "description", "seed", "output", "launcher", "jobs", "retries", "slurm", "sweep")


class Experiment:
    """An experiment file with its bases and the command line's overrides, before a sweep sets its own keys."""

    def __init__(self, path: str | Path, overrides: Sequence[str] = ()):
        self.path = find(path)
        below = layers(self.path)
        self.task = _task(below, overrides)
        self.schema = EXPERIMENTS[self.task]
        self.layers = [*below, *(parse_override(text, self.schema) for text in overrides)]

    def config(self, changes: Mapping[str, Any] | None = None, where: str = "sweep") -> ExperimentConfig:
        """The typed config with `changes` (full key -> value) made last; `where` is what messages call them.

        Raises UserError for anything in it that is not allowed.
        """
        settings = self._settings(changes, where)
        settings.values["model"]["preset"] = None  # its keys are all written out now
        settings.values["slurm"]["profile"] = None
        if settings.values["name"] == "???":
            raise UserError(f"{shown(self.path)}: the key 'name' is missing: what the experiment is called")
        config: ExperimentConfig = settings.build()
        _check_experiment(config, settings)
        config.plugins = [_plugin(plugin, self.path) for plugin in config.plugins]
        return config

    def source(self, keys: Sequence[str], changes: Mapping[str, Any] | None = None, where: str = "sweep") -> str:
        """What set the last of `keys`, as the beginning of a message: a file, the command line, `where`, or nothing."""
        return self._settings(changes, where).where(*keys)

    def _settings(self, changes: Mapping[str, Any] | None, where: str) -> Settings:
        extra = [Layer(where, nested(self.schema, key, value)) for key, value in (changes or {}).items()]
        settings = Settings(self.schema)
        every = [*self.layers, *extra]
        below = [*_profile_layers(every, self.path), *_preset_layers(every, PRESET_FAMILY[self.task])]
        for layer in [*below, *every]:
            settings.lay(layer)
        return settings


def load(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The typed config of an experiment file or of a run's config.yaml, `overrides` as on the command line.

    Raises UserError, naming file and key, for whatever the schema does not allow.
    """
    return Experiment(path, overrides).config()


def save(config: ExperimentConfig, path: str | Path) -> None:
    """Write the whole config, so that `load` gives it back."""
    with atomic_write(Path(path)) as file:
        file.write(text(config))


def text(config: ExperimentConfig) -> str:
    """The whole config as a file holds it."""
    return yaml12.dump(dataclasses.asdict(config))


def digest(config: ExperimentConfig) -> str:
    """Eight hexadecimal digits of everything that shapes a result but the seed; of a plugin's file, its content."""
    return hashlib.sha256(json.dumps(_shaping(config), sort_keys=True).encode()).hexdigest()[:8]


def differences(old: ExperimentConfig, new: ExperimentConfig) -> list[str]:
    """In what two configs differ that shapes a result, the seed included: `train.steps = 10, now 20`, `plugins`."""
    before, now = (dict(flatten({"seed": config.seed, **_shaping(config)})) for config in (old, new))
    keys = [key for key in before | now if before.get(key) != now.get(key)]
    return [key if key == "plugins" else f"{key} = {before.get(key)}, now {now.get(key)}" for key in keys]


def _shaping(config: ExperimentConfig) -> dict[str, Any]:
    kept = {key: value for key, value in dataclasses.asdict(config).items() if key not in NOT_HASHED}
    return kept | {"plugins": [_content(plugin) for plugin in config.plugins]}


def single(config: ExperimentConfig) -> ExperimentConfig:
    """The config of one run: without the sweep it comes from."""
    return dataclasses.replace(config, sweep=SweepConfig())


def _task(below: Sequence[Layer], overrides: Sequence[str]) -> str:
    """The task that the last of the files, or the command line, names: it selects the schema of the other keys."""
    named = [(layer.content["task"], layer.where) for layer in below if "task" in layer.content]
    named += [(text.removeprefix("task="), COMMAND_LINE) for text in overrides if text.startswith("task=")]
    task, where = named[-1] if named else ("detection", "")
    if not isinstance(task, str) or task not in EXPERIMENTS:
        raise unknown("task", str(task), EXPERIMENTS, where)
    return task


def parse_override(text: str, schema: Schema) -> Layer:
    """`key=value` as a layer of its own. Raises UserError unless it has that form."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[\w-]+)*", key):
        raise UserError(f"{COMMAND_LINE}: expected key=value, such as train.steps=100, not {text!r}")
    if key == "base":
        raise UserError(f"{COMMAND_LINE}: base: only a file can name the files that it builds on")
    return Layer(COMMAND_LINE, nested(schema, key, yaml12.value(value, f"{COMMAND_LINE}: {key}")))


def _preset_layers(every: Iterable[Layer], family: str) -> list[Layer]:
    """The layers of the preset that the last of `every` names: they go below all of them."""
    name, where = _last(every, "model", "preset")
    if name is None:
        return []
    return [Layer(layer.where, {"model": layer.content}) for layer in preset_chain(name, where, family)]


def _profile_layers(every: Iterable[Layer], experiment: Path) -> list[Layer]:
    """The SLURM profile that the last of `every` names, as a layer that goes below all of them."""
    name, where = _last(every, "slurm", "profile")
    if name is None:
        return []
    path = find_profile(str(name), where, experiment)
    content = yaml12.read(path)
    if "profile" in content:
        raise UserError(f"{shown(path)}: a profile cannot build on another")
    return [Layer(shown(path), {"slurm": content})]


def _last(every: Iterable[Layer], block: str, key: str) -> tuple[Any, str]:
    """What the last of `every` that has `block.key` says, and the place that messages name."""
    value, where = None, ""
    for layer in every:
        content = layer.content.get(block)
        if isinstance(content, Mapping) and key in content:
            value, where = content[key], f"{layer.where}: {block}.{key}"
    return value, where


def _check_experiment(config: ExperimentConfig, settings: Settings) -> None:
    """What concerns several keys, or the form of one."""
    if not re.fullmatch(r"\w[\w.=,+-]*", config.name):
        raise UserError(f"{settings.where('name')}name = {config.name!r}: expected the name of a folder, without '/'")
    if (config.train.steps is None) == (config.train.epochs is None):
        given = "both are set" if config.train.steps is not None else "neither is set"
        place = settings.where("train.steps", "train.epochs")
        raise UserError(f"{place}train: exactly one of train.steps and train.epochs, but {given}")
    if config.data.batch_size % config.processes:
        raise UserError(
            f"{settings.where('data.batch_size', 'processes')}data.batch_size = {config.data.batch_size}: "
            f"expected a multiple of processes = {config.processes}"
        )
    _check_sharded(config.train, settings)
    check_slurm(config.slurm, config.processes, settings.where)


def _check_sharded(train: TrainConfig, settings: Settings) -> None:
    """What parts of parameters, in train.parallel = fsdp2, do not go with."""
    if train.parallel != "fsdp2":
        return

    def refusal(key: str, reason: str) -> UserError:
        return UserError(f"{settings.where('train.parallel', key)}train.parallel = 'fsdp2': {reason}")

    if train.optimizer.name != "adamw":
        key = "train.optimizer.name"
        raise refusal(key, f"expected {key} = 'adamw', but it is {train.optimizer.name!r}")
    for key in ("train.compile", "train.channels_last"):
        if getattr(train, key.removeprefix("train.")):
            raise refusal(key, f"does not go with {key}")


def _plugin(plugin: str, experiment: Path) -> str:
    """A plugin's file, relative to the experiment or the current folder, by its whole path: a saved config finds it."""
    if not plugin.endswith(".py"):
        return plugin
    found = [path for path in (experiment.resolve().parent / plugin, Path(plugin).resolve()) if isfile(path)]
    return str(found[0]) if found else plugin


def _content(plugin: str) -> str:
    path = Path(plugin)
    return hashlib.sha256(path.read_bytes()).hexdigest() if plugin.endswith(".py") and isfile(path) else plugin
