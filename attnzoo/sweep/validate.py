"""Refusing what cannot be built, before anything is written."""

from collections.abc import Iterable

import torch

from attnzoo import models
from attnzoo.attention.plugins import load_plugin
from attnzoo.config.schema import ExperimentConfig
from attnzoo.data import num_classes
from attnzoo.errors import UserError
from attnzoo.sweep.expand import Run


def validate(runs: Iterable[Run]) -> None:
    """Check the options of each variant's data and build its model without memory. Raises UserError naming the run."""
    seen: set[str] = set()
    for run in runs:
        if run.digest in seen:
            continue
        seen.add(run.digest)
        try:
            _validate(run.config)
        except UserError as error:
            raise UserError(f"run {run.name}: {error}") from None


def _validate(config: ExperimentConfig) -> None:
    for plugin in config.plugins:
        load_plugin(plugin, "plugins")
    classes = num_classes(config.data)
    chosen = config.model.num_classes or classes
    if chosen < classes:
        raise UserError(f"model.num_classes = {chosen}: the data set has {classes} classes")
    if config.device == "cuda" and config.launcher == "local" and not torch.cuda.is_available():
        raise UserError("device = 'cuda': no CUDA GPU is visible here (allowed: auto, cpu)")
    with torch.device("meta"):
        models.build(config.model, chosen)
