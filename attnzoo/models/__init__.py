"""Models, published and your own: `names()`, `create(name)`, `features(name)`, `build(config)`.

Importing this package, or the configs in it, imports no torch: the models are imported where they are built.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attnzoo.errors import UserError, unknown
from attnzoo.models import presets
from attnzoo.models.config import ModelConfig
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.models.vit.config import VitConfig

if TYPE_CHECKING:
    from attnzoo.models.detr.detector import Detector
    from attnzoo.models.vit.classifier import Classifier
    from attnzoo.models.vit.features import Features

names = presets.names


def create(preset: str, *, num_classes: int | None = None, **overrides: Any) -> "Detector | Classifier":
    """The model of a preset with randomly initialised weights: `create("detr_r50")`, `create("swin_tiny")`.

    `overrides` are fields of DetectorConfig or ClassifierConfig, nested as dicts. Unless given, `num_classes` is 91 for
    detectors (COCO's category ids) and 1000 for classifiers (ImageNet). Raises UserError for a name or value that is
    not allowed.
    """
    if preset not in names():
        raise unknown("preset", preset, names())
    if preset in names(family="vit"):
        return build(presets.classifier_config(preset, {**overrides, "num_classes": num_classes}), num_classes or 1000)
    return build(presets.detector_config(preset, {**overrides, "num_classes": num_classes}), num_classes or 91)


def features(preset: str, *, out_indices: Sequence[int] | None = None, **overrides: Any) -> "Features":
    """Feature maps of a hierarchical vision transformer, as `timm.create_model(preset, features_only=True)` gives them.

    `out_indices` counts stages from 0, ascending; None takes all. `overrides` are fields of VitConfig, nested as dicts.
    Raises UserError for a name, stage or value that is not allowed.
    """
    from attnzoo.models.vit.features import Features

    if preset not in names(family="vit"):
        raise unknown("preset", preset, names(family="vit"))
    return Features(presets.vit_config(preset, overrides), out_indices)


def build(config: ModelConfig | VitConfig, num_classes: int) -> "Detector | Classifier":
    """The model that `config` describes, for `num_classes` classes ("no object" not counted).

    Raises UserError, naming the key, for a combination that cannot work.
    """
    if isinstance(config, DetectorConfig):
        from attnzoo.models.detr.detector import Detector

        return Detector(config, num_classes)
    from attnzoo.models.vit.classifier import Classifier

    assert isinstance(config, VitConfig)
    return Classifier(config, num_classes)


def class_count(config: ModelConfig, present: int) -> int:
    """How many classes the model of an experiment tells apart: as configured, else those `present` in the data set.

    Raises UserError if the data set has more than the model is configured for.
    """
    if config.num_classes is not None and config.num_classes < present:
        raise UserError(f"model.num_classes = {config.num_classes}: the data set has {present} classes")
    return config.num_classes or present


__all__ = ["build", "class_count", "create", "features", "names"]
