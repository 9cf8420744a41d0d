"""Loads experiment files, presets and overrides into a typed config, and saves it."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any

from attnzoo.config.experiment import PRESET_FAMILY, SCHEMAS, ExperimentConfig, SweepConfig
from attnzoo.config.files import display_path, find_experiment, find_profile, load_layers
from attnzoo.config.options import keys_of_option, resolve_options, with_added_options
from attnzoo.config.slurm import check_slurm
from attnzoo.engine.config import TrainConfig
from attnzoo.errors import COMMAND_LINE, UserError, as_yaml, unknown
from attnzoo.files import read_bytes
from attnzoo.models.presets import preset_layers
from attnzoo.paths import real_path
from attnzoo.rundir.folder import atomic_write, check_config, config_text, is_cut_short
from attnzoo.schema import yaml12
from attnzoo.schema.keys import flatten
from attnzoo.schema.merge import ConfigBuilder, ConfigLayer, Schema, nest_key

# Keys that do not affect results, and the seed.
NOT_HASHED = ("name", "description", "seed", "output", "launcher", "jobs", "retries", "slurm", "sweep")
NOT_HASHED_OF_TRAIN = ("pictures",)
MISSING = object()
MAX_NAME = 200  # bytes; file systems allow 255


@dataclass(frozen=True)
class Change:
    """A key that a sweep sets for one run; `source` names in messages what set it."""

    key: str
    value: Any
    source: str


class Experiment:
    """An experiment file with its bases and the command line's overrides, before sweep expansion."""

    def __init__(self, path: str | Path, overrides: Sequence[str] = ()):
        self.path = find_experiment(path)
        file_layers = load_layers(self.path)
        if is_cut_short(read_bytes(self.path)):
            check_config(self.path)
        self.task = _task(file_layers, overrides)
        self.schema = SCHEMAS[self.task]
        self.layers = [*file_layers, *(parse_override(text, self.schema) for text in overrides)]

    def config(self, changes: Sequence[Change] = ()) -> ExperimentConfig:
        """The typed config with the `changes` of a run merged last.

        Options of named blocks are not checked: that needs torch. Raises UserError, naming source and key, for anything
        else that is not allowed.
        """
        builder = self._builder(changes)
        builder.values["model"]["preset"] = None  # merged already, as is the profile
        builder.values["slurm"]["profile"] = None
        if builder.values["name"] == "???":
            raise UserError(f"{display_path(self.path)}: the key 'name' (of the experiment) is missing", key="name")
        config: ExperimentConfig = builder.build()
        try:
            _check_experiment(config)
        except UserError as error:
            raise builder.locate(error) from None
        config.plugins = [_absolute_plugin(plugin, self.path) for plugin in config.plugins]
        return config

    def locate(self, error: UserError, changes: Sequence[Change] = (), run: str = "") -> UserError:
        """The error prefixed with what set the last of its keys: a file, the command line or a change.

        `run` is the name of the run with these changes, to be named where their source does not.
        """
        source = self._builder(changes).source(*error.keys)
        by_sweep = any(source.startswith(change.source) for change in changes)
        return error.at(f"run {run}" if run and not by_sweep else "").at(source)

    def source(self, key: str) -> str:
        """The file that set a key, or the command line; "" for a default."""
        return self._builder(()).source(key)

    def _builder(self, changes: Sequence[Change]) -> ConfigBuilder:
        sweep = [
            ConfigLayer(change.source, nest_key(self.schema, change.key, yaml12.escape(change.value)))
            for change in changes
        ]
        layers = [*self.layers, *sweep]
        # looked up on the command line alone: reading what was saved loads no torch
        by_hand = any(layer.source == COMMAND_LINE for layer in layers)
        builder = ConfigBuilder(self.schema, functools.partial(keys_of_option, self.schema) if by_hand else None)
        for layer in [*_profile_layers(layers, self.path), *_preset_layers(layers, PRESET_FAMILY[self.task]), *layers]:
            builder.merge(layer)
        return builder


def load(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The typed config of an experiment file, with all options written out; `overrides` as on the command line.

    Loads the experiment's plugins. Raises UserError, naming file and key, for anything that is not allowed.
    """
    experiment = Experiment(path, overrides)
    config = experiment.config()
    try:
        return resolve_options(config)
    except UserError as error:
        raise experiment.locate(error) from None


def load_saved(path: str | Path) -> ExperimentConfig:
    """The config in a file that `save` wrote. Its options, checked when the run was made, are not checked again.

    Needs no torch and no plugins. Raises UserError for a file that does not fit the schema.
    """
    return Experiment(path).config()


def from_values(values: Mapping[str, Any], source: str) -> ExperimentConfig:
    """The config with these values, all keys written out, as `dataclasses.asdict` gives them.

    Raises UserError, naming `source`, if they do not fit the schema.
    """
    schema = SCHEMAS.get(str(values.get("task")))
    if schema is None:
        raise unknown("task", values.get("task"), SCHEMAS, "task").at(source)
    builder = ConfigBuilder(schema)
    builder.merge(ConfigLayer(source, yaml12.escape(values)))
    config: ExperimentConfig = builder.build()
    return config


def save(config: ExperimentConfig, path: str | Path) -> None:
    """Write the whole config, so that `load` and `load_saved` give it back."""
    with atomic_write(Path(path)) as file:
        file.write(to_yaml(config))


def to_yaml(config: ExperimentConfig) -> str:
    """The whole config as YAML, with its hash and a mark of its end: see `rundir.folder.check_config`.

    Without a sweep if there is none: an empty block in a file is refused.
    """
    values = dataclasses.asdict(config)
    if config.sweep == SweepConfig():
        del values["sweep"]
    return config_text(yaml12.dump(yaml12.escape(values)))


def digest(config: ExperimentConfig) -> str:
    """Hash, 8 hexadecimal digits, of `identity` without what has its schema's default.

    So a config keeps its digest when the schema gains a key. Of options, which the schema does not know, see
    `with_added_options`.
    """
    defaults = _default_identity(config.task)
    values = {key: value for key, value in flatten(identity(config)) if defaults.get(key, MISSING) != value}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


@functools.cache
def _default_identity(task: str) -> dict[str, Any]:
    return dict(flatten(identity(SCHEMAS[task]())))


def find_digest(saved: ExperimentConfig, digests: Collection[str]) -> str | None:
    """The one of `digests` that a saved config has, also if attentions or data sets have gained options since."""
    if (recorded := digest(saved)) in digests:
        return recorded
    completed = digest(with_added_options(saved))
    return completed if completed in digests else None


def identity(config: ExperimentConfig) -> dict[str, Any]:
    """All keys that affect results but the seed; plugins by the recorded hashes of their source, not by their paths."""
    values = {key: value for key, value in dataclasses.asdict(config).items() if key not in NOT_HASHED}
    train = {key: value for key, value in values["train"].items() if key not in NOT_HASHED_OF_TRAIN}
    return values | {
        "train": train,
        "plugins": [config.versions.get(plugin, plugin) for plugin in config.plugins],
        "versions": {key: version for key, version in config.versions.items() if key not in config.plugins},
    }


def differences(old: ExperimentConfig, new: ExperimentConfig) -> list[str]:
    """Differences of two configs in `identity` and the seed: `train.steps = 10, now 20`, `plugins (a.py changed)`."""
    before, now = (dict(flatten({"seed": config.seed, **identity(config)})) for config in (old, new))
    keys = [key for key in before | now if before.get(key) != now.get(key)]
    changed = "".join(f" ({plugin} changed)" for plugin in changed_plugins(old.versions, new))
    return [
        f"plugins{changed}" if key == "plugins" else f"{key} = {as_yaml(before.get(key))}, now {as_yaml(now.get(key))}"
        for key in keys
    ]


def changed_plugins(old: Mapping[str, str], new: ExperimentConfig) -> list[str]:
    """The plugins of `new` whose source differs from the `old` versions."""
    return [plugin for plugin in new.plugins if plugin in old and old[plugin] != new.versions.get(plugin)]


def without_sweep(config: ExperimentConfig) -> ExperimentConfig:
    """The config of one run."""
    return dataclasses.replace(config, sweep=SweepConfig())


def _task(file_layers: Sequence[ConfigLayer], overrides: Sequence[str]) -> str:
    """The task, which selects the schema; the command line wins over files."""
    named = [(layer.values["task"], layer.source) for layer in file_layers if "task" in layer.values]
    named += [(text.removeprefix("task="), COMMAND_LINE) for text in overrides if text.startswith("task=")]
    task, source = named[-1] if named else ("detection", "")
    if not isinstance(task, str) or task not in SCHEMAS:
        raise unknown("task", task, SCHEMAS, "task").at(source)
    return task


def parse_override(text: str, schema: Schema) -> ConfigLayer:
    """`key=value` as a layer. Raises UserError for any other form."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[\w-]+)*", key):
        raise UserError(f"{COMMAND_LINE}: expected key=value, such as train.steps=100, not {text!r}")
    if key == "base":
        raise UserError(f"{COMMAND_LINE}: base: cannot be set on the command line", key="base")
    try:
        return ConfigLayer(COMMAND_LINE, nest_key(schema, key, yaml12.parse_value(value, f"{COMMAND_LINE}: {key}")))
    except UserError as error:
        raise UserError(str(error), key=key) from None


def _preset_layers(layers: Iterable[ConfigLayer], family: str | None) -> list[ConfigLayer]:
    """The layers of the preset in use; they go below all of `layers`."""
    preset, source = _last_value(layers, "model", "preset")
    if preset is None:
        return []
    if family is None:
        raise UserError(f"{source}: model.preset: this task has no presets", key="model.preset")
    try:
        layers = preset_layers(preset, family)
    except UserError as error:
        raise UserError(f"{source}: model.preset: {error}", key="model.preset") from None
    return [ConfigLayer(layer.source, {"model": layer.values}, "model.preset") for layer in layers]


def _profile_layers(layers: Iterable[ConfigLayer], experiment: Path) -> list[ConfigLayer]:
    """The SLURM profile in use; it goes below all of `layers`."""
    profile, source = _last_value(layers, "slurm", "profile")
    if profile is None:
        return []
    try:
        path = find_profile(str(profile), experiment)
    except UserError as error:
        raise error.at(source) from None
    values = yaml12.read(path)
    if "profile" in values:
        message = f"{source}: {display_path(path)}: profile: a profile cannot extend another"
        raise UserError(message, key="slurm.profile")
    return [ConfigLayer(display_path(path), {"slurm": values}, "slurm.profile")]


def _last_value(layers: Iterable[ConfigLayer], block: str, key: str) -> tuple[Any, str]:
    """The value of `block.key` in the last of `layers` that sets it, and the source of that layer."""
    value, source = None, ""
    for layer in layers:
        values = layer.values.get(block)
        if isinstance(values, Mapping) and key in values:
            value, source = values[key], layer.source
    return value, source


def _check_experiment(config: ExperimentConfig) -> None:
    """Check what depends on several keys, and the form of the name."""
    if not re.fullmatch(r"\w[\w.=,+-]*", config.name):
        raise UserError(f"name = {as_yaml(config.name)}: expected the name of a folder, without '/'", key="name")
    if (length := len(config.name.encode())) > MAX_NAME:
        raise UserError(f"name: {length} bytes long: expected at most {MAX_NAME}", key="name")
    if (config.train.steps is None) == (config.train.epochs is None):
        both = "both are set; set train.steps = null to train for epochs, or train.epochs = null"
        state = both if config.train.steps is not None else "neither is set"
        keys = ("train.steps", "train.epochs")
        raise UserError(f"train: exactly one of train.steps and train.epochs, but {state}", key=keys)
    if config.data.batch_size % config.processes:
        raise UserError(
            f"data.batch_size = {config.data.batch_size}: expected a multiple of processes = {config.processes}",
            key=("data.batch_size", "processes"),
        )
    if config.task == "probe" and config.data.workers:
        message = f"data.workers = {config.data.workers}: probes are generated in the training process (allowed: 0)"
        raise UserError(message, key="data.workers")
    if config.train.cuda_graphs and config.device == "cpu":
        raise UserError("train.cuda_graphs = true: needs a GPU, but device = cpu", key=("train.cuda_graphs", "device"))
    _check_fsdp(config.train)
    check_slurm(config.slurm, config.processes)


def _check_fsdp(train: TrainConfig) -> None:
    """Reject options that FSDP does not support."""
    if train.parallel != "fsdp2":
        return
    if train.optimizer.name != "adamw":
        key = "train.optimizer.name"
        reason = f"expected {key} = 'adamw', but it is {as_yaml(train.optimizer.name)}"
        raise UserError(f"train.parallel = 'fsdp2': {reason}", key=("train.parallel", key))
    for key in ("train.compile", "train.cuda_graphs", "train.channels_last"):
        if getattr(train, key.removeprefix("train.")):
            raise UserError(f"train.parallel = 'fsdp2': does not support {key}", key=("train.parallel", key))


def _absolute_plugin(plugin: str, experiment: Path) -> str:
    """The absolute path of a plugin next to the experiment or in the current folder, for the saved config."""
    if not plugin.endswith(".py"):
        return plugin
    candidates = [path for path in (real_path(experiment).parent / plugin, real_path(plugin)) if isfile(path)]
    return str(candidates[0]) if candidates else plugin
