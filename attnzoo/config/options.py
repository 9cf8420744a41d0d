"""Options of named blocks (attentions, data set, augmentation): checked and written out.

They are looked up in the registries, which import torch; this module imports them when it is called.
"""

import copy
import dataclasses
from typing import Any

from attnzoo.config.experiment import ExperimentConfig
from attnzoo.errors import UserError
from attnzoo.models import presets
from attnzoo.models.config import BackboneConfig
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.schema.merge import named_blocks


def resolve_options(config: ExperimentConfig) -> ExperimentConfig:
    """A copy with all options of its named blocks, so that later changes of defaults do not affect it.

    Loads the plugins. Raises UserError, with its key, for an unknown name or option, a value of the wrong type and a
    missing option.
    """
    from attnzoo.attention import ATTENTIONS, load_plugin
    from attnzoo.data.build import registries

    for plugin in config.plugins:
        try:
            load_plugin(plugin)
        except UserError as error:
            raise UserError(f"plugins: {error}", key="plugins") from None
    config = copy.deepcopy(config)
    datasets, augmentations = registries(config.data)
    for owner, field, key in named_blocks(config):
        registry = {"data.dataset": datasets, "data.augment": augmentations}.get(key, ATTENTIONS)
        setattr(owner, field, registry.with_defaults(getattr(owner, field), key))
    if isinstance(config.model, DetectorConfig):
        _resolve_backbone(config.model.backbone, ATTENTIONS)
    return config


def _resolve_backbone(backbone: BackboneConfig, attentions: Any) -> None:
    """Write out the options of a backbone of this package; timm's models know their own defaults."""
    if backbone.name in presets.names(family="vit"):
        vit = presets.vit_config(backbone.name, backbone.options, "model.backbone.options")
        for owner, field, key in named_blocks(vit, "model.backbone.options."):
            setattr(owner, field, attentions.with_defaults(getattr(owner, field), key))
        backbone.options = dataclasses.asdict(vit)
