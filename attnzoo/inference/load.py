"""Load a trained model with what is needed to use it: class names, preprocessing, settings."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo
from torchvision.models._meta import _COCO_CATEGORIES

from attnzoo import models
from attnzoo.config.experiment import ExperimentConfig
from attnzoo.data import build
from attnzoo.data.coco import NO_CATEGORY
from attnzoo.errors import UserError, as_yaml, check_type, plural
from attnzoo.inference.loaded import LoadedModel, unnamed
from attnzoo.inference.settings import num_classes_of, read_trained, settings_of_run
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.models.detr.detector import Detector
from attnzoo.models.vit.classifier import Classifier
from attnzoo.models.weights import AUTO, files, fit_whole
from attnzoo.models.weights.match import explain

log = logging.getLogger(__name__)

IMAGENET_CLASSES = 1000


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
    91 classes, of ImageNet for classifiers with 1,000. A class without a known name is "class 3".

    `device` may be "auto": a GPU if there is one.

    Raises UserError, in one line, for a path without weights, weights that do not fit or are incomplete, and an unknown
    preset, source or device; TypeError for arguments of other types.
    """
    check_type("path", path, (str, PathLike), "a path")
    check_type("preset", preset, (str, type(None)), "a name")
    check_type("source", source, (str,), "a name")
    check_type("overrides", overrides, (list, tuple), "a list such as ['model.queries=100']")
    check_type("class_names", class_names, (list, tuple, type(None)), "a list of names")
    check_type("device", device, (str, torch.device), "a name such as 'cpu' or 'cuda'")
    target = _device(device)
    trained = read_trained(path, preset, source, overrides)
    settings, run, content = trained.settings, trained.run, trained.content
    model = _build(settings, content, str(trained.file), source)
    if class_names is not None:
        names = list(class_names)
        if len(names) != model.num_classes:
            reason = f"{plural(len(names), 'name')}, but the model has {plural(model.num_classes, 'class', 'classes')}"
            raise UserError(f"class_names: {reason}", key="class_names")
    elif run is not None:
        names = _names_in_data(settings_of_run(run))  # those that it was trained with, whatever the overrides
    else:
        names = _published_names(content, model.num_classes, settings.task)
    names = [*names, *(unnamed(index) for index in range(len(names), model.num_classes))][: model.num_classes]
    if settings.train.channels_last:
        model.to(memory_format=torch.channels_last)
    return LoadedModel(model.to(target).eval(), settings, names, trained.file, None if run is None else run.path)


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = f"device = {as_yaml(str(device))}"
    try:
        target = torch.device(device)
    except RuntimeError:
        target = None
    if target is None or target.type not in ("cpu", "cuda"):
        raise UserError(f"{name}: expected auto, cpu, cuda or cuda:N", key="device")
    if target.type == "cuda" and (target.index or 0) >= (count := torch.cuda.device_count()):
        reason = f"only {plural(count, 'GPU')}" if count else "no GPU"
        raise UserError(f"{name}: there is {reason} that PyTorch can use", key="device")
    return target


def _build(settings: ExperimentConfig, content: files.Content, path: str, source: str) -> Detector | Classifier:
    """The model with the weights. Raises UserError if any of them is missing."""
    config: Any = dataclasses.replace(settings.model, weights=None)
    if isinstance(config, DetectorConfig):
        config.backbone = dataclasses.replace(config.backbone, weights=None)
    with torch.random.fork_rng(devices=[]):
        model = models.build(config, num_classes_of(config, content, path, source))
    assert isinstance(model, (Detector, Classifier))
    fitted = fit_whole(model, content.state, source, path)
    if missing := fitted.report.missing:
        name, reason = next(iter(missing.items()))
        message = f"{path}: {plural(len(missing), 'tensor')} of the model missing, such as {name} ({reason})"
        raise explain(UserError(message), fitted, content.state, source)
    fitted.apply()
    log.info("%s: %s", path, fitted.report)
    return model


def _names_in_data(settings: ExperimentConfig) -> list[str]:
    """The class names of a run's data set; none if its files are not there."""
    try:
        return build.class_names(settings.data)
    except (OSError, UserError):
        return []


def _published_names(content: files.Content, num_classes: int, task: str) -> list[str]:
    """Those in config.json of a Hugging Face folder, else of COCO or ImageNet if the number of classes is theirs."""
    given = content.options.get("class_names")
    if isinstance(given, list) and len(given) == num_classes:
        return list(map(str, given))
    names = content.options.get("id2label")
    if isinstance(names, Mapping) and {*names} == {str(index) for index in range(num_classes)}:
        return [str(names[str(index)]) for index in range(num_classes)]
    if task == "detection" and num_classes == len(_COCO_CATEGORIES):
        return [NO_CATEGORY, *_COCO_CATEGORIES[1:]]
    if task == "classification" and num_classes == IMAGENET_CLASSES:
        info = ImageNetInfo()
        return [info.index_to_description(index) for index in range(num_classes)]
    return []
