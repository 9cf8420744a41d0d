"""The settings that weights were trained with: of a run, of config.json in a Hugging Face folder, of a preset."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import isdir, isfile
from pathlib import Path
from typing import Any

from attnzoo import models
from attnzoo.attention import ATTENTIONS, load_plugin, source_hash
from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.files import PACKAGED
from attnzoo.config.load import Experiment
from attnzoo.config.record import check_record
from attnzoo.errors import UserError, as_yaml, plural, unknown
from attnzoo.interop import huggingface
from attnzoo.interop.describe import SAME_SHAPES, Description, class_logits, describe_content
from attnzoo.models import presets
from attnzoo.models.config import ModelConfig
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.models.weights import files, sources
from attnzoo.paths import user_path
from attnzoo.rundir.folder import RunFolder, check_config

log = logging.getLogger(__name__)

# The published recipes, whose data sets and evaluation sizes presets have.
RECIPES = {
    "deformable_detr": "deformable_detr_coco.yaml",
    "detr": "detr_coco.yaml",
    "dat": "dat_imagenet.yaml",
    "swin": "swin_imagenet.yaml",
}
NOT_OF_THE_MODEL = {f"model.{key}" for key in ("preset", "weights", "backbone.weights", "num_classes")}


@dataclass(frozen=True)
class Trained:
    """The content of a file of weights, and the settings that it was trained with.

    `told_by` is the config.yaml of a run or the config.json of a Hugging Face folder; None for those of a preset.
    """

    file: Path
    content: files.Content
    settings: ExperimentConfig
    run: RunFolder | None = None
    told_by: Path | None = None


def read_trained(
    path: str | Path, preset: str | None = None, source: str = sources.AUTO, overrides: Sequence[str] = ()
) -> Trained:
    """The weights at a path, of `preset`, else as the config beside them says, else of the preset that they fit.

    Raises UserError without weights, and for weights that fit no preset.
    """
    if preset is not None and preset not in models.names():
        raise unknown("preset", preset, models.names(), "preset")
    if preset is not None:
        file = _find(path)
        return Trained(file, files.read_content(str(file)), _published(preset, {}, overrides))
    content, trained = read_configured(path, overrides)
    if trained is not None:
        return trained
    return Trained(_find(path), content, _published(_told_preset(content, str(path), source), {}, overrides))


def read_configured(path: str | Path, overrides: Sequence[str] = ()) -> tuple[files.Content, Trained | None]:
    """The weights at a path, and with the settings in the config.yaml or config.json beside them if there is one.

    Raises UserError without weights, and for a config that cannot be used.
    """
    full = user_path(path)
    run = _run_of(full)
    if run is not None:
        file = _checkpoint_of(run) if full == run.path else full
        settings = settings_of_run(run, overrides)
        content = files.read_content(str(file))
        if content.config:
            check_record(content.config, file, Experiment(run.config).config(), run.config)
        return content, Trained(file, content, settings, run, run.config)
    file = _find(path)
    content = files.read_content(str(file))
    try:
        told = _of_hub_model(content.options) or huggingface.model_settings(content.options)
        if told is None:
            return content, None
        preset, changes = told
        changes |= huggingface.preprocessing(file.parent, "detection" if _is_detector(preset) else "classification")
    except UserError as error:
        raise error.at(str(file.parent)) from None
    try:
        settings = _published(preset, changes, ())
    except UserError as error:
        raise huggingface.as_theirs(error, file.with_name(huggingface.CONFIG)) from None
    if overrides:
        settings = _published(preset, changes, overrides)
    return content, Trained(file, content, settings, None, file.with_name(huggingface.CONFIG))


def _run_of(path: Path) -> RunFolder | None:
    """The run that `path` is the folder or a checkpoint of."""
    folder = path.parent.parent if isfile(path) and path.parent.name == "checkpoints" else path
    run = RunFolder(folder)
    return run if isdir(folder) and isfile(run.config) else None


def _checkpoint_of(run: RunFolder) -> Path:
    try:
        return files.find(str(run.path))
    except UserError:
        state = run.read_status()["state"]
        raise UserError(f"{run.path}: no checkpoint; the run is {state}") from None


def _find(path: str | Path) -> Path:
    """The file of weights. Raises UserError with what else the path may be."""
    full = user_path(path)
    if full.name in models.names() and not full.exists():
        how = f"give a file of weights, and preset={full.name} (--preset {full.name})"
        raise UserError(f"{path} is a preset, without weights: {how}")
    try:
        return files.find(str(path))
    except UserError:
        runs = sorted(each.parent.name for each in full.glob("*/config.yaml")) if isdir(full) else []
        if not runs:
            raise
        listed = ", ".join(runs[:3]) + (", …" if len(runs) > 3 else "")
        raise UserError(f"{path}: a folder of {plural(len(runs), 'run')}: give one of them ({listed})") from None


def settings_of_run(run: RunFolder, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The settings in a run's config.yaml, whose plugins are loaded. Raises UserError for one of task: probe."""
    check_config(run.config)
    settings = Experiment(run.config, overrides).config()
    if settings.task == "probe":
        raise UserError(f"{run.path}: a run of task: probe, whose model takes no images")
    for plugin in settings.plugins:
        load_plugin(plugin, where=f"{run.config}: plugins")
        if source_hash(plugin) != settings.versions.get(plugin, source_hash(plugin)):
            log.warning("%s: the plugin %s changed after this run was created", run.path, plugin)
    return settings


def _published(preset: str, changes: dict[str, Any], overrides: Sequence[str]) -> ExperimentConfig:
    """The settings of the published recipe, with evaluation in single precision and in small batches."""
    recipe = next(file for prefix, file in RECIPES.items() if preset.startswith(prefix))
    # padding changes results a little, those of DC5 models more
    fixed: dict[str, Any] = {"train.precision": "fp32", "data.val_batch_size": 1 if _is_detector(preset) else 64}
    if not _is_detector(preset):
        fixed["data.augment.size"] = changes.get("model.image_size", presets.vit_config(preset, {}).image_size)
    own = [f"model.preset={preset}", *(f"{key}={as_yaml(value)}" for key, value in (fixed | changes).items())]
    return Experiment(PACKAGED / recipe, [*own, *overrides]).config()


def _is_detector(preset: str) -> bool:
    return preset in models.names(family="detector")


def _told_preset(content: files.Content, path: str, source: str) -> str:
    description = describe_content(content, path, source)
    preset = preset_of(description, "--preset {0}, in Python preset={0!r}")
    if preset is not None:
        return preset
    nearest = "" if description.nearest is None else f"; the nearest is {description.nearest}"
    raise UserError(
        f"{path}: {description.source}, but no preset fits{nearest}. Give the preset (--preset), and what differs as "
        "overrides (--set), such as model.queries=100; `attnzoo weights` lists it"
    )


def preset_of(description: Description, how: str) -> str | None:
    """The preset that weights fit, None without one; warns if they fit several, of which `how` gives another.

    Raises UserError for weights of a backbone.
    """
    if description.num_classes is None:
        reason = f"{description.source}, without a class head: nothing to predict with"
        raise UserError(f"{description.path}: {reason}; a detector takes a backbone as model.backbone.weights")
    if len(description.presets) > 1:
        first, *others = description.presets
        names = f"{', '.join(others)}, {SAME_SHAPES}"
        other = how.format(others[0])
        log.warning("%s: taken as %s, but may be %s: %s if they are", description.path, first, names, other)
    return next(iter(description.presets), None)


def num_classes_of(config: ModelConfig, content: files.Content, path: str, source: str) -> int:
    """That of the settings, else from the size of the class head in the file."""
    if config.num_classes is not None:
        return config.num_classes
    logits = class_logits(content.state, source)
    if logits is None:
        raise UserError(f"{path}: no class head of a known source in this file")
    no_object = isinstance(config, DetectorConfig) and config.loss.classification == "cross_entropy"
    return max(logits - no_object, 1)


def _of_hub_model(options: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The nearest preset, and what differs, of the config.json that `HubModel.save_pretrained` writes; else None."""
    settings, family = options.get("settings"), options.get("family")
    if not isinstance(settings, Mapping) or family not in ("detector", "classifier"):
        return None
    build = presets.detector_config if family == "detector" else presets.classifier_config
    try:
        config = build(None, settings)
    except UserError as error:
        raise error.at(huggingface.CONFIG) from None
    preset, changes = nearest_preset(config)
    augment = options.get("augment")
    return preset, changes | ({} if augment is None else {"data.augment": augment})


def nearest_preset(config: Any) -> tuple[str, dict[str, Any]]:
    """The preset of which the fewest keys of the model differ, and the values of these keys."""
    detector = isinstance(config, DetectorConfig)
    build = presets.detector_config if detector else presets.classifier_config
    wanted = _flat(config)
    differences = {}
    for name in models.names(family="detector" if detector else "vit"):
        other = _flat(build(name, {}))
        differences[name] = {key: value for key, value in wanted.items() if value != other[key]}
    best = min(differences, key=lambda name: len(differences[name]))
    return best, differences[best]


def _flat(config: Any, prefix: str = "model.") -> dict[str, Any]:
    """The values of a config by dotted key, attentions with all of their options."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            values |= _flat(value, f"{key}.")
        elif key not in NOT_OF_THE_MODEL:
            named = isinstance(value, Mapping) and value.get("name") in ATTENTIONS.names()
            values[key] = ATTENTIONS.with_defaults(value, key) if named else value
    return values
