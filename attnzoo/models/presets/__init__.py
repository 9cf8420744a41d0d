"""Published models by name: one YAML file each, detectors in `detr/` and hierarchical vision transformers in `vit/`."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from attnzoo.errors import UserError, unknown
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.models.vit.config import ClassifierConfig, VitConfig
from attnzoo.schema import yaml12
from attnzoo.schema.merge import ConfigBuilder, ConfigLayer, Schema, nest_key

FOLDERS = {"detector": Path(__file__).with_name("detr"), "vit": Path(__file__).with_name("vit")}


def names(pattern: str = "*", *, family: str | None = None) -> list[str]:
    """The sorted names of published models that match a shell pattern, such as "dat*".

    `family` is "detector" or "vit"; None means both. No match gives an empty list.
    """
    families = FOLDERS if family is None else [family]
    matches = [path.stem for name in families for path in FOLDERS[name].glob("*.yaml")]
    return sorted(name for name in matches if fnmatchcase(name, pattern))


def detector_config(preset: str | None, overrides: Mapping[str, Any]) -> DetectorConfig:
    """A published detector, or the schema's defaults, with keys of DetectorConfig (nested or dotted) changed.

    Raises UserError for a preset or key that does not exist and for an invalid value.
    """
    return cast(DetectorConfig, _build(DetectorConfig, "detector", preset, overrides, "model"))


def vit_config(preset: str | None, overrides: Mapping[str, Any], where: str = "model") -> VitConfig:
    """A published hierarchical vision transformer, or the schema's defaults, with keys of VitConfig changed.

    Keys may be nested or dotted; `where` is the config key of `overrides`. Raises UserError as `detector_config` does.
    """
    return cast(VitConfig, _build(VitConfig, "vit", preset, overrides, where))


def classifier_config(preset: str | None, overrides: Mapping[str, Any]) -> ClassifierConfig:
    """A published classifier, or the schema's defaults, with keys of ClassifierConfig (nested or dotted) changed.

    Raises UserError as `detector_config` does.
    """
    return cast(ClassifierConfig, _build(ClassifierConfig, "vit", preset, overrides, "model"))


def _build(schema: Schema, family: str, preset: str | None, overrides: Mapping[str, Any], where: str) -> Any:
    builder = ConfigBuilder(schema)
    layers = preset_layers(preset, family) if preset is not None else []
    layers += [ConfigLayer(where, nest_key(schema, key, value)) for key, value in overrides.items()]
    try:
        for layer in layers:
            builder.merge(layer)
        return builder.build()
    except UserError as error:
        raise UserError(str(error), key=tuple(f"{where}.{key}" for key in error.keys)) from None


def preset_layers(preset: str, family: str) -> list[ConfigLayer]:
    """The layers of a preset, lowest precedence first: a preset may extend another. Keys are relative to the model.

    Raises UserError for an unknown preset.
    """
    layers: list[ConfigLayer] = []
    chain: list[str] = []
    name: Any = preset
    while name is not None:
        if name in chain:
            raise UserError(f"circular presets: {' -> '.join([*chain, name])}")
        if name not in names(family=family):
            raise unknown("preset", str(name), names(family=family))
        chain.append(name)
        values = yaml12.read(FOLDERS[family] / f"{name}.yaml")
        name = values.pop("preset", None)
        layers.insert(0, ConfigLayer(f"preset {chain[-1]}", values))
    return layers
