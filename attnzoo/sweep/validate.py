"""Refusing what cannot be built, before anything is written, and writing every option out."""

import copy
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from attnzoo import models
from attnzoo.attention import ATTENTIONS
from attnzoo.attention.plugins import load_plugin
from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.load import Experiment, digest
from attnzoo.data.build import dataset_info, registries
from attnzoo.engine.loop import count_steps
from attnzoo.engine.optim import check_names, known_optimizer
from attnzoo.errors import UserError
from attnzoo.models import presets
from attnzoo.models.config import BackboneConfig, ModelConfig
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.models.dry_run import dry_run
from attnzoo.models.vit.config import VitConfig
from attnzoo.sweep.expand import RunSpec, drop_repeats


def validate(experiment: Experiment, runs: Sequence[RunSpec]) -> list[RunSpec]:
    """The runs with the defaults of all options written into their configs.

    Raises UserError, naming file, run and key, unless the options of each variant's data are allowed and its model can
    be built and runs; no image is read and the model takes no memory.
    """
    completed: dict[str, ExperimentConfig] = {}
    parameters: dict[str, list[str]] = {}  # of each model, by what it was built from
    valid = []
    for run in runs:
        if run.digest not in completed:
            try:
                completed[run.digest] = _complete(run.config)
                _check(completed[run.digest], parameters)
            except UserError as error:
                raise UserError(f"{_source(experiment, run, str(error))}run {run.name}: {error}") from None
        whole = completed[run.digest]
        config = dataclasses.replace(run.config, data=whole.data, model=whole.model)
        valid.append(dataclasses.replace(run, config=config, digest=digest(config)))
    valid = drop_repeats(valid, experiment)
    names = {name for found in parameters.values() for name in found}
    for run in valid:
        try:
            check_names(run.config.train.optimizer, names)
        except UserError as error:
            raise UserError(f"{_source(experiment, run, str(error))}run {run.name}: {error}") from None
    return valid


def _source(experiment: Experiment, run: RunSpec, message: str) -> str:
    """What set the last of the keys that a message names, the first word among them, as the beginning of a message."""
    keys = re.findall(r"^[a-z_]+(?:\.[a-z_0-9]+)*|[a-z_]+(?:\.[a-z_0-9]+)+", message)
    return experiment.source(keys, run.overrides | {"seed": run.seed}, f"{experiment.path}: sweep") if keys else ""


def _complete(config: ExperimentConfig) -> ExperimentConfig:
    """The config with the defaults of attentions, data set and augmentation: they may change, a result may not."""
    for plugin in config.plugins:
        load_plugin(plugin, "plugins")
    config = copy.deepcopy(config)
    datasets, augmentations = registries(config.data)
    config.data.dataset = datasets.complete(config.data.dataset, "data.dataset")
    config.data.augment = augmentations.complete(config.data.augment, "data.augment")
    _complete_attentions(config.model, "model")
    if isinstance(config.model, DetectorConfig):
        _complete_backbone(config.model.backbone, "model.backbone.options")
    return config


def _complete_backbone(backbone: BackboneConfig, where: str) -> None:
    """All options of a backbone that is a preset of ours; timm keeps those of its models to itself."""
    if backbone.name in presets.names("vit"):
        trunk = presets.vit_config(backbone.name, backbone.options, where)
        _complete_attentions(trunk, where)
        backbone.options = dataclasses.asdict(trunk)


def _complete_attentions(model: ModelConfig | VitConfig, where: str) -> None:
    for place, owner, field in _attentions(model):
        setattr(owner, field, ATTENTIONS.complete(getattr(owner, field), f"{where}.{place}.{field}"))


def _attentions(model: ModelConfig | VitConfig) -> Iterator[tuple[str, Any, str]]:
    """Every block that names an attention: the key of what holds it, that itself, and the block's name in it."""
    if isinstance(model, DetectorConfig):
        yield "encoder", model.encoder, "attention"
        yield "decoder", model.decoder, "attention"
    elif isinstance(model, VitConfig):
        for stage in ("stage1", "stage2", "stage3", "stage4"):
            for field in ("first", "second"):
                yield stage, getattr(model, stage), field


def _check(config: ExperimentConfig, parameters: dict[str, list[str]]) -> None:
    data = dataset_info(config.data)
    chosen = models.class_count(config.model, data.num_classes)
    if data.train_length is not None:
        if config.data.batch_size > data.train_length:
            raise UserError(
                f"data.batch_size = {config.data.batch_size}: there are {data.train_length} training images"
            )
        count_steps(config.train, data.train_length // config.data.batch_size)
    known_optimizer(config.train.optimizer)
    if config.device == "cuda" and config.launcher == "local" and not torch.cuda.is_available():
        raise UserError("device = 'cuda': no CUDA GPU is visible here (allowed: auto, cpu)")
    built_from = repr((config.model, chosen, data.size))
    if built_from not in parameters:  # a sweep may leave the model and the size alone
        parameters[built_from] = dry_run(config.model, chosen, data.size)
