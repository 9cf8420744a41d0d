"""Options of named blocks (attentions, data set, augmentation): checked and written out.

They are looked up in the registries, which import torch; this module imports them when it is called.
"""

import copy
import dataclasses
import functools
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from attnzoo.config.experiment import ExperimentConfig
from attnzoo.errors import UserError
from attnzoo.models import presets
from attnzoo.models.config import BackboneConfig
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.schema.merge import Schema, named_blocks


def resolve_options(config: ExperimentConfig) -> ExperimentConfig:
    """A copy with all options of its named blocks, and `versions`, so that later changes do not affect it.

    Loads the plugins. Raises UserError, with its key, for an unknown name or option, a value of the wrong type and a
    missing option.
    """
    from attnzoo.attention import load_plugin

    for plugin in config.plugins:
        try:
            load_plugin(plugin)
        except UserError as error:
            raise UserError(f"plugins: {error}", key="plugins") from None
    config = _with_options(config)
    config.versions = _versions(config)
    return config


def with_added_options(config: ExperimentConfig) -> ExperimentConfig:
    """A saved config with the defaults of options that its attentions and data set have gained since it was saved.

    The config itself if it no longer fits. Plugins are not loaded, since reading results runs no code: the config
    itself, too, if it names an attention that is not registered.
    """
    try:
        return _with_options(config)
    except UserError:
        return config


def _with_options(config: ExperimentConfig) -> ExperimentConfig:
    from attnzoo.attention import ATTENTIONS
    from attnzoo.data.build import registries

    config = copy.deepcopy(config)
    datasets, augmentations = registries(config.data)
    for owner, field, key in named_blocks(config):
        registry = {"data.dataset": datasets, "data.augment": augmentations}.get(key, ATTENTIONS)
        setattr(owner, field, registry.with_defaults(getattr(owner, field), key))
    if isinstance(config.model, DetectorConfig):
        _resolve_backbone(config.model.backbone, ATTENTIONS)
    return config


def keys_of_option(schema: Schema, values: Mapping[str, Any], option: str) -> list[str]:
    """The full keys of an option by its own name, in the named blocks of a config with these `values`."""
    from attnzoo.attention import ATTENTIONS
    from attnzoo.data.build import registries

    defaults = schema()
    datasets, augmentations = registries(defaults.data)
    found = []
    for _, _, key in named_blocks(defaults):
        registry = {"data.dataset": datasets, "data.augment": augmentations}.get(key, ATTENTIONS)
        block: Any = functools.reduce(lambda below, part: below[part], key.split("."), values)
        with suppress(UserError, NameError, TypeError):  # a name that is not known, or no text
            if option in registry.types(block["name"]):
                found.append(f"{key}.{option}")
    return found


def check_versions(config: ExperimentConfig) -> None:
    """Raise UserError if a plugin, the data set or the weights are not those that the config has recorded.

    Not for files that are missing: what reads them says which.
    """
    now = _versions(config)
    for key in (key for key, version in config.versions.items() if now.get(key, version) != version):
        raise UserError(
            f"versions: {key} changed after this run was created; run the experiment again to create a new run",
            key="versions",
        )


def _versions(config: ExperimentConfig) -> dict[str, str]:
    """Hashes of the source of each plugin, of the data set and of the weights; without those that are not there."""
    from attnzoo.attention import source_hash
    from attnzoo.data.build import dataset_fingerprint

    versions: dict[str, str | None] = {plugin: source_hash(plugin) for plugin in config.plugins}
    versions["data.dataset"] = dataset_fingerprint(config.data)
    if isinstance(config.model, DetectorConfig):
        versions["model.backbone.weights"] = _weights_hash(config.model.backbone.weights)
    versions["model.weights"] = _weights_hash(config.model.weights)
    return {key: version for key, version in versions.items() if version is not None}


def _weights_hash(path: str | None) -> str | None:
    from attnzoo.data.hashes import hash_file
    from attnzoo.models.weights.files import find

    try:
        return None if path is None else hash_file(find(path))
    except (UserError, OSError):
        return None


def _resolve_backbone(backbone: BackboneConfig, attentions: Any) -> None:
    """Write out the options of a backbone of this package; timm's models know their own defaults."""
    if backbone.name in presets.names(family="vit"):
        vit = presets.vit_config(backbone.name, backbone.options, "model.backbone.options")
        for owner, field, key in named_blocks(vit, "model.backbone.options."):
            setattr(owner, field, attentions.with_defaults(getattr(owner, field), key))
        backbone.options = dataclasses.asdict(vit)
