"""Published and custom models: `names()`, `create(name)`, `features(name)`, `build(config)`.

Importing this package or its configs does not import torch: model classes are imported when one is built.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from attnzoo.errors import UserError, plural, unknown
from attnzoo.models import presets
from attnzoo.models.config import ModelConfig
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.models.probe.config import ProbeConfig
from attnzoo.models.vit.config import VitConfig

if TYPE_CHECKING:
    from attnzoo.models.detr.detector import Detector
    from attnzoo.models.probe.model import ProbeModel
    from attnzoo.models.vit.classifier import Classifier
    from attnzoo.models.vit.features import Features

names = presets.names


def create(preset: str, *, num_classes: int | None = None, **overrides: Any) -> "Detector | Classifier":
    """A preset with randomly initialised weights: `create("detr_r50")`, `create("swin_tiny")`.

    `overrides` are fields of DetectorConfig or ClassifierConfig, as nested dicts. `num_classes` defaults to 91 for
    detectors (COCO category ids) and 1000 for classifiers (ImageNet). Raises UserError for an unknown preset or field
    and for an invalid value.
    """
    if preset not in names():
        raise unknown("preset", preset, names())
    overrides = {**overrides, "num_classes": num_classes}
    if preset in names(family="vit"):
        model = build(presets.classifier_config(preset, overrides), num_classes or 1000)
    else:
        model = build(presets.detector_config(preset, overrides), num_classes or 91)
    return cast("Detector | Classifier", model)


def features(preset: str, *, out_indices: Sequence[int] | None = None, **overrides: Any) -> "Features":
    """A hierarchical ViT as feature extractor, like `timm.create_model(preset, features_only=True)`.

    `out_indices` are 0-based stage indices in ascending order; None selects all stages. `overrides` are fields of
    VitConfig, as nested dicts. Raises UserError for an unknown preset, stage or field and for an invalid value.
    """
    from attnzoo.models.vit.features import Features

    if preset not in names(family="vit"):
        raise unknown("preset", preset, names(family="vit"))
    return Features(presets.vit_config(preset, overrides), out_indices)


def build(config: ModelConfig | VitConfig, num_classes: int) -> "Detector | Classifier | ProbeModel":
    """The model described by `config`, for `num_classes` classes ("no object" not included).

    Initial values depend on torch's seed and the name of the parameter alone: after the same `torch.manual_seed`, two
    models share those of all parameters that both have. Raises UserError, naming the key, for an invalid configuration.
    """
    from attnzoo.models.initialization import init_by_name

    return init_by_name(partial(_construct, config, num_classes))


def _construct(config: ModelConfig | VitConfig, num_classes: int) -> "Detector | Classifier | ProbeModel":
    if isinstance(config, DetectorConfig):
        from attnzoo.models.detr.detector import Detector

        return Detector(config, num_classes)
    if isinstance(config, ProbeConfig):
        from attnzoo.models.probe.model import ProbeModel

        return ProbeModel(config, num_classes)
    from attnzoo.models.vit.classifier import Classifier

    assert isinstance(config, VitConfig)
    return Classifier(config, num_classes)


def resolve_num_classes(config: ModelConfig, dataset_num_classes: int) -> int:
    """`config.num_classes` if set, else the number of classes of the data set.

    Raises UserError if the data set has more classes than the model is configured for.
    """
    if config.num_classes is not None and config.num_classes < dataset_num_classes:
        raise UserError(
            f"model.num_classes = {config.num_classes}: the data set has "
            f"{plural(dataset_num_classes, 'class', 'classes')}",
            key="model.num_classes",
        )
    return config.num_classes or dataset_num_classes


__all__ = ["build", "create", "features", "names", "resolve_num_classes"]
