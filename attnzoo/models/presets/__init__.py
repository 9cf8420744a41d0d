"""Published models by name: one YAML file each, detectors in `detr/` and hierarchical vision transformers in `vit/`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from attnzoo.errors import UserError, unknown
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.models.vit.config import ClassifierConfig, VitConfig
from attnzoo.schema import yaml12
from attnzoo.schema.merge import Layer, Settings, nested

FOLDERS = {"detector": Path(__file__).with_name("detr"), "vit": Path(__file__).with_name("vit")}


def names(family: str | None = None) -> list[str]:
    """The names of the published models: of all, or of one family, "detector" or "vit"."""
    return [name for each in ([family] if family else FOLDERS) for name in _names(each)]


def detector_config(preset: str | None, overrides: Mapping[str, Any]) -> DetectorConfig:
    """A published detector, or the schema's defaults, with keys of DetectorConfig (nested or dotted) changed.

    Raises UserError for a preset or key that does not exist or a value that does not fit.
    """
    settings = Settings(DetectorConfig)
    _lay(settings, preset_chain(preset, "preset", "detector") if preset is not None else [], overrides, "model")
    settings.values["preset"] = None
    return cast(DetectorConfig, settings.build())


def vit_config(preset: str | None, overrides: Mapping[str, Any], where: str = "model") -> VitConfig:
    """A published hierarchical vision transformer, or the schema's defaults, with keys of VitConfig changed.

    Keys may be nested or dotted; `where` is what messages call them. Raises UserError as `detector_config` does.
    """
    settings = Settings(VitConfig)
    _lay(settings, preset_chain(preset, where, "vit") if preset is not None else [], overrides, where)
    return cast(VitConfig, settings.build())


def classifier_config(preset: str | None, overrides: Mapping[str, Any]) -> ClassifierConfig:
    """A published classifier, or the schema's defaults, with keys of ClassifierConfig (nested or dotted) changed.

    Raises UserError as `detector_config` does.
    """
    settings = Settings(ClassifierConfig)
    _lay(settings, preset_chain(preset, "preset", "vit") if preset is not None else [], overrides, "model")
    return cast(ClassifierConfig, settings.build())


def _lay(settings: Settings, below: Iterable[Layer], overrides: Mapping[str, Any], where: str) -> None:
    for layer in below:
        settings.lay(layer)
    for key, value in overrides.items():
        settings.lay(Layer(where, nested(settings.schema, key, value)))


def preset_chain(name: str, where: str, family: str) -> list[Layer]:
    """The settings of a preset, relative to the model, lowest first: a preset may build on another."""
    chain: list[Layer] = []
    seen: list[str] = []
    following: Any = name
    while following is not None:
        if following in seen:
            raise UserError(f"{where}: presets build on each other: {' -> '.join([*seen, following])}")
        if following not in _names(family):
            raise unknown("preset", str(following), _names(family), where)
        seen.append(following)
        content = yaml12.read(FOLDERS[family] / f"{following}.yaml")
        following = content.pop("preset", None)
        chain.insert(0, Layer(f"preset {seen[-1]}", content))
    return chain


def _names(family: str) -> list[str]:
    return sorted(path.stem for path in FOLDERS[family].glob("*.yaml"))
