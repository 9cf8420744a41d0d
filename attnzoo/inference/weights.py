"""`attnzoo weights`: what a file of weights is, with the model that the config beside it describes."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import torch

from attnzoo import models
from attnzoo.errors import as_yaml
from attnzoo.inference.settings import nearest_preset, num_classes_of, read_configured
from attnzoo.interop.describe import Description, describe_content, describe_fit
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.models.weights import AUTO


def describe_weights(path: str | Path, source: str = AUTO) -> Description:
    """What a file, a run folder or a Hugging Face folder holds, and what would be loaded.

    The model is that of the config.yaml of the run, or of config.json beside the file; without them the presets are
    tried. Raises UserError for what are no weights, of no known source, or a config that cannot be used.
    """
    content, trained = read_configured(path)
    if trained is None:
        return describe_content(content, str(path), source)
    config: Any = dataclasses.replace(trained.settings.model, weights=None)
    if isinstance(config, DetectorConfig):
        config.backbone = dataclasses.replace(config.backbone, weights=None)
    num_classes = num_classes_of(config, content, str(path), source)
    with torch.device("meta"):
        model = models.build(config, num_classes)
    found = describe_fit(content, str(path), source, model, num_classes)
    preset, changes = nearest_preset(config)
    how = f"an experiment with the model block of {trained.told_by}, and model.weights={shlex.quote(str(path))}"
    if trained.run is None:
        settings = [f"{key}={as_yaml(value)}" for key, value in changes.items()]
        how = " ".join(map(shlex.quote, [f"model.preset={preset}", *settings, f"model.weights={path}"]))
    exact = [preset] if not changes else []
    return dataclasses.replace(found, presets=exact, told_by=str(trained.told_by), how=how)
