"""Detectors, published and your own: `names()`, `create(name)`, `build(config)`."""

from typing import Any

from attnzoo.config import model_config, presets
from attnzoo.config.schema import ModelConfig
from attnzoo.models.detr.detector import Detector

names = presets


def create(preset: str, **overrides: Any) -> Detector:
    """A published model with randomly initialised weights, such as `create("detr_r50", num_classes=91)`.

    `overrides` are fields of ModelConfig, nested as dicts; num_classes is 91 (COCO's category ids) unless
    given. Raises UserError for a name or value that is not allowed.
    """
    config = model_config(preset, overrides)
    return build(config, config.num_classes or 91)


def build(config: ModelConfig, num_classes: int) -> Detector:
    """The detector that `config` describes, for `num_classes` classes ("no object" not counted).

    Raises UserError, naming the key, for a combination that cannot work.
    """
    return Detector(config, num_classes)


__all__ = ["Detector", "build", "create", "names"]
