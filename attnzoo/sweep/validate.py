"""Refusing what cannot be built, before anything is written, and writing every option out."""

import copy
import dataclasses
import re
from collections.abc import Sequence
from functools import partial

import torch

from attnzoo import models
from attnzoo.attention import ATTENTIONS
from attnzoo.attention.plugins import load_plugin
from attnzoo.config.load import Experiment, digest
from attnzoo.config.schema import ExperimentConfig
from attnzoo.data import AUGMENTATIONS, DATASETS, Outline, outline
from attnzoo.errors import UserError
from attnzoo.models.detr.losses import seen
from attnzoo.models.trial import untrained
from attnzoo.sweep.expand import Run, refuse_twins


def validate(experiment: Experiment, runs: Sequence[Run]) -> list[Run]:
    """The runs with the defaults of all options written into their configs.

    Raises UserError, naming file, run and key, unless the options of each variant's data are allowed and its model can
    be built and runs; no image is read and the model takes no memory.
    """
    completed: dict[str, ExperimentConfig] = {}
    tried: set[str] = set()
    valid = []
    for run in runs:
        if run.digest not in completed:
            try:
                completed[run.digest] = _complete(run.config)
                _check(completed[run.digest], tried)
            except UserError as error:
                raise UserError(f"{_source(experiment, run, str(error))}run {run.name}: {error}") from None
        config = dataclasses.replace(copy.deepcopy(completed[run.digest]), seed=run.seed)
        valid.append(dataclasses.replace(run, config=config, digest=digest(config)))
    refuse_twins(valid, str(experiment.path))
    return valid


def _source(experiment: Experiment, run: Run, message: str) -> str:
    """What set the key that a message begins with, as the beginning of a message."""
    key = re.match(r"[a-z_]+(\.[a-z_0-9]+)*", message)
    return experiment.source(key[0], run.changes | {"seed": run.seed}, f"{experiment.path}: sweep") if key else ""


def _complete(config: ExperimentConfig) -> ExperimentConfig:
    """The config with the defaults of attentions, data set and augmentation: they may change, a result may not."""
    for plugin in config.plugins:
        load_plugin(plugin, "plugins")
    config = copy.deepcopy(config)
    for side, where in ((config.model.encoder, "model.encoder"), (config.model.decoder, "model.decoder")):
        side.attention = ATTENTIONS.complete(side.attention, f"{where}.attention")
    config.data.dataset = DATASETS.complete(config.data.dataset, "data.dataset")
    config.data.augment = AUGMENTATIONS.complete(config.data.augment, "data.augment")
    return config


def _check(config: ExperimentConfig, tried: set[str]) -> None:
    data = outline(config.data)
    chosen = config.model.num_classes or data.num_classes
    if chosen < data.num_classes:
        raise UserError(f"model.num_classes = {chosen}: the data set has {data.num_classes} classes")
    if data.train_length is not None and config.data.batch_size > data.train_length:
        raise UserError(f"data.batch_size = {config.data.batch_size}: there are {data.train_length} training images")
    if config.device == "cuda" and config.launcher == "local" and not torch.cuda.is_available():
        raise UserError("device = 'cuda': no CUDA GPU is visible here (allowed: auto, cpu)")
    _try(config, chosen, data, tried)


def _try(config: ExperimentConfig, num_classes: int, data: Outline, tried: set[str]) -> None:
    """Build and run the model once per model and image size: a sweep may leave both alone."""
    trial = repr((config.model, num_classes, data.size))
    if trial not in tried:
        with torch.device("meta"):
            model = models.build(config.model, num_classes)
        untrained(model, data.size, partial(seen, config.model.loss))
        tried.add(trial)
