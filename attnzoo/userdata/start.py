"""What a new experiment starts from: published weights, a run, or nothing."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from attnzoo.config.experiment import ExperimentConfig
from attnzoo.errors import UserError
from attnzoo.inference.settings import preset_of, read_configured
from attnzoo.inference.weights import nearest_preset
from attnzoo.interop.describe import describe_content
from attnzoo.models import presets
from attnzoo.paths import user_path


@dataclass(frozen=True)
class Start:
    """`model` holds the keys of the model block; `run`: the config that trained the weights, if they are a run's."""

    model: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    run: ExperimentConfig | None = None

    @property
    def is_random(self) -> bool:
        return self.weights is None

    @property
    def queries(self) -> int:
        """The object queries of the detector."""
        if "queries" in self.model:
            return int(self.model["queries"])
        return presets.detector_config(self.model.get("preset"), {}).queries


def read_start(weights: str, task: str) -> Start:
    """The model of a run folder, a Hugging Face folder or a file of weights: of the config beside it, else the preset.

    Raises UserError if there is none, or if it is of another task.
    """
    path = str(user_path(weights).absolute())
    content, trained = read_configured(weights)
    if trained is not None:
        _check_task(trained.settings.task, task, weights)
        if trained.run is not None:
            model = _changes(trained.settings.model, type(trained.settings.model)())
            model = {key: value for key, value in model.items() if key not in ("weights", "num_classes")}
            return Start(model, path, trained.settings)
        preset, changes = nearest_preset(trained.settings.model)
        return Start({"preset": preset} | _nested(changes), path)
    description = describe_content(content, weights)
    told = preset_of(description, "model.preset: {0}")
    if told is None:
        nearest = f"; the nearest is {description.nearest}" if description.nearest else ""
        raise UserError(f"{weights}: {description.source}; its weights fit no preset exactly{nearest}")
    detector = told in presets.names(family="detector")
    _check_task("detection" if detector else "classification", task, f"{weights}: weights of {told}")
    return Start({"preset": told}, path)


def _check_task(found: str, task: str, what: str) -> None:
    if found != task:
        raise UserError(f"{what}: a model of task: {found}, but this data set is for task: {task}")


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys such as model.encoder.layers as nested mappings, below "model"."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *parents, name = key.split(".")[1:]
        block = nested
        for parent in parents:
            block = block.setdefault(parent, {})
        block[name] = value
    return nested


def _changes(config: Any, default: Any) -> dict[str, Any]:
    """What differs from the default, nested."""
    changed: dict[str, Any] = {}
    for name in (each.name for each in dataclasses.fields(config)):
        value, other = getattr(config, name), getattr(default, name)
        if dataclasses.is_dataclass(value):
            value, other = _changes(value, other), {}
        if value != other:
            changed[name] = value
    return changed
