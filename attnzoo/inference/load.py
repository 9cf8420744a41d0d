"""Load a trained model with what is needed to use it: class names, preprocessing, settings."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from os.path import expanduser, isdir, isfile
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo
from torchvision.models._meta import _COCO_CATEGORIES

from attnzoo import models
from attnzoo.attention import load_plugin, source_hash
from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.files import PACKAGED
from attnzoo.config.load import Experiment
from attnzoo.data import build
from attnzoo.data.coco import NO_CATEGORY
from attnzoo.errors import UserError, as_yaml, plural, unknown
from attnzoo.inference.loaded import LoadedModel, unnamed
from attnzoo.interop import huggingface
from attnzoo.interop.describe import class_logits, describe_content
from attnzoo.models import presets
from attnzoo.models.config import ModelConfig
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.models.detr.detector import Detector
from attnzoo.models.vit.classifier import Classifier
from attnzoo.models.weights import AUTO, files, fit
from attnzoo.models.weights.fit import refuse
from attnzoo.rundir.folder import RunFolder, check_config

log = logging.getLogger(__name__)

IMAGENET_CLASSES = 1000
# The published recipes, whose data sets and evaluation sizes presets have.
RECIPES = {
    "deformable_detr": "deformable_detr_coco.yaml",
    "detr": "detr_coco.yaml",
    "dat": "dat_imagenet.yaml",
    "swin": "swin_imagenet.yaml",
}


def load_model(
    path: str | Path,
    *,
    preset: str | None = None,
    source: str = AUTO,
    overrides: Sequence[str] = (),
    class_names: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """A trained model, in evaluation mode, with class names, preprocessing, settings and `predict`.

    `path` is one of

    - a run folder: the checkpoint with the best metric, EMA weights if there are any
    - a checkpoint in a run folder
    - a file of weights of this or another project, or a Hugging Face folder, of the model `preset`; by default the
      preset is told from the keys. `source` is the name of a table in attnzoo/models/weights/sources

    `overrides` change settings as on the command line, such as "model.queries=100". `class_names` are one per class
    index; by default those of the run's data set if it is there, of a Hugging Face folder, of COCO for detectors with
    91 classes, of ImageNet for classifiers with 1,000. A class without a
    known name is "class 3".

    `device` may be "auto": a GPU if there is one.

    Raises UserError, in one line, for a path without weights, weights that do not fit or are incomplete, and an unknown
    preset, source or device.
    """
    target = _device(device)
    full = Path(expanduser(path))
    run = None if preset is not None else _run_of(full)
    if run is not None:
        weights = _checkpoint(run) if full == run.path else full
        settings = _settings_of_run(run, overrides)
        content = files.read_content(str(weights))
    else:
        if preset is not None and preset not in models.names():
            raise unknown("preset", preset, models.names())
        weights = _find(full, str(path))
        content = files.read_content(str(weights))
        settings = _published_settings(preset, content, weights, str(path), source, overrides)
    model = _build(settings, content, str(weights), source)
    if class_names is not None:
        names = list(class_names)
        if len(names) != model.num_classes:
            raise UserError(f"class_names has {len(names)} names, but the model has {model.num_classes} classes")
    elif run is not None:
        names = _names_in_data(_settings_of_run(run, ()))  # those that it was trained with, whatever the overrides
    else:
        names = _published_names(content, model.num_classes, settings.task)
    names = [*names, *(unnamed(index) for index in range(len(names), model.num_classes))][: model.num_classes]
    if settings.train.channels_last:
        model.to(memory_format=torch.channels_last)
    return LoadedModel(model.to(target).eval(), settings, names, weights, None if run is None else run.path)


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError:
        raise UserError(f"device = {as_yaml(str(device))}: expected auto, cpu, cuda or cuda:N") from None
    if target.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device = {as_yaml(str(device))}: there is no GPU that PyTorch can use")
    return target


def _run_of(path: Path) -> RunFolder | None:
    """The run that `path` is the folder or a checkpoint of."""
    folder = path.parent.parent if isfile(path) and path.parent.name == "checkpoints" else path
    run = RunFolder(folder)
    return run if isdir(folder) and isfile(run.config) else None


def _checkpoint(run: RunFolder) -> Path:
    try:
        return files.find(str(run.path))
    except UserError:
        state = run.read_status()["state"]
        raise UserError(f"{run.path}: no checkpoint; the run is {state}") from None


def _find(path: Path, shown: str) -> Path:
    """The file of weights. Raises UserError with what else the path may be."""
    if path.name in models.names() and not path.exists():
        raise UserError(f"{shown} is a preset, without weights: give a file of weights, and preset = {path.name}")
    try:
        return files.find(str(path))
    except UserError:
        runs = sorted(each.parent.name for each in path.glob("*/config.yaml")) if isdir(path) else []
        if not runs:
            raise
        listed = ", ".join(runs[:3]) + (", …" if len(runs) > 3 else "")
        raise UserError(f"{shown}: a folder of {plural(len(runs), 'run')}: give one of them ({listed})") from None


def _settings_of_run(run: RunFolder, overrides: Sequence[str]) -> ExperimentConfig:
    check_config(run.config)
    settings = Experiment(run.config, overrides).config()
    if settings.task == "probe":
        raise UserError(f"{run.path}: a run of task: probe, whose model takes no images")
    for plugin in settings.plugins:
        load_plugin(plugin, where=f"{run.config}: plugins")
        if source_hash(plugin) != settings.versions.get(plugin, source_hash(plugin)):
            log.warning("%s: the plugin %s changed after this run was created", run.path, plugin)
    return settings


def _published_settings(
    preset: str | None, content: files.Content, weights: Path, path: str, source: str, overrides: Sequence[str]
) -> ExperimentConfig:
    """The settings of the published recipe, with evaluation in single precision and in small batches."""
    told = huggingface.model_settings(content.options) if preset is None else None
    if told is None:
        told = preset or _told_preset(content, path, source), {}
    preset, changes = told
    detector = preset in models.names(family="detector")
    recipe = next(file for prefix, file in RECIPES.items() if preset.startswith(prefix))
    # padding changes results a little, those of DC5 models more
    fixed: dict[str, Any] = {"train.precision": "fp32", "data.val_batch_size": 1 if detector else 64}
    if not detector:
        fixed["data.augment.size"] = presets.vit_config(preset, {}).image_size
    fixed |= changes
    if changes:
        fixed |= huggingface.preprocessing(weights.parent, "detection" if detector else "classification")
    own = [f"model.preset={preset}", *(f"{key}={as_yaml(value)}" for key, value in fixed.items())]
    return Experiment(PACKAGED / recipe, [*own, *overrides]).config()


def _told_preset(content: files.Content, path: str, source: str) -> str:
    description = describe_content(content, path, source)
    if description.presets:
        return description.presets[0]
    if description.num_classes is None:
        raise UserError(f"{path}: weights of a backbone alone ({description.source}): nothing to predict with")
    nearest = "" if description.nearest is None else f"; the nearest is {description.nearest}"
    raise UserError(
        f"{path}: {description.source}, but no preset fits{nearest}. Give the preset, and what differs, such as "
        "model.queries=100 (`attnzoo weights` lists it)"
    )


def _build(settings: ExperimentConfig, content: files.Content, path: str, source: str) -> Detector | Classifier:
    """The model with the weights. Raises UserError if any of them is missing."""
    config: Any = dataclasses.replace(settings.model, weights=None)
    if isinstance(config, DetectorConfig):
        config.backbone = dataclasses.replace(config.backbone, weights=None)
    with torch.random.fork_rng(devices=[]):
        model = models.build(config, _num_classes(config, content, path, source))
    assert isinstance(model, (Detector, Classifier))
    fitted = fit(model, content.state, source, path)
    if fitted.problems:
        raise refuse(fitted.problems, path, "")
    if missing := fitted.report.missing:
        name, reason = next(iter(missing.items()))
        raise UserError(f"{path}: {plural(len(missing), 'tensor')} of the model missing, such as {name} ({reason})")
    fitted.apply()
    log.info("%s: %s", path, fitted.report)
    return model


def _num_classes(config: ModelConfig, content: files.Content, path: str, source: str) -> int:
    """That of the settings, else from the size of the class head in the file."""
    if config.num_classes is not None:
        return config.num_classes
    logits = class_logits(content.state, source)
    if logits is None:
        raise UserError(f"{path}: no class head of a known source in this file")
    no_object = isinstance(config, DetectorConfig) and config.loss.classification == "cross_entropy"
    return max(logits - no_object, 1)


def _names_in_data(settings: ExperimentConfig) -> list[str]:
    """The class names of a run's data set; none if its files are not there."""
    try:
        return build.class_names(settings.data)
    except (OSError, UserError):
        return []


def _published_names(content: files.Content, num_classes: int, task: str) -> list[str]:
    """Those in config.json of a Hugging Face folder, else of COCO or ImageNet if the number of classes is theirs."""
    names = content.options.get("id2label")
    if isinstance(names, Mapping) and {*names} == {str(index) for index in range(num_classes)}:
        return [str(names[str(index)]) for index in range(num_classes)]
    if task == "detection" and num_classes == len(_COCO_CATEGORIES):
        return [NO_CATEGORY, *_COCO_CATEGORIES[1:]]
    if task == "classification" and num_classes == IMAGENET_CLASSES:
        info = ImageNetInfo()
        return [info.index_to_description(index) for index in range(num_classes)]
    return []
