"""What a new experiment starts from: published weights, a run, or nothing."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.load import load_saved
from attnzoo.errors import UserError
from attnzoo.files import expand_user
from attnzoo.interop.describe import describe
from attnzoo.models import presets
from attnzoo.models.weights import files

FAMILY = {"detection": "detector", "classification": "vit"}


@dataclass(frozen=True)
class Start:
    """`model` holds the keys of the model block; `run`: the config that trained the weights, if they are a run's."""

    model: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    run: ExperimentConfig | None = None

    @property
    def is_random(self) -> bool:
        return self.weights is None


def read_start(weights: str, task: str) -> Start:
    """The model that fits a file of weights, a run folder or a Hugging Face folder.

    Raises UserError if there is none, or if it is of another task.
    """
    file = files.find(weights)
    path = str(expand_user(weights).absolute())
    for folder in (Path(path), *file.absolute().parents[:2]):
        if (config := folder / "config.yaml").is_file():
            return _of_run(config, path, task)
    description = describe(path)
    preset = next(iter(description.presets), None)
    if preset is None:
        nearest = f"; the nearest is {description.nearest}" if description.nearest else ""
        raise UserError(f"{weights}: {description.source}; its weights fit no preset exactly{nearest}")
    if preset not in presets.names(family=FAMILY[task]):
        raise UserError(f"{weights}: weights of {preset}, but this data set is for task: {task}")
    return Start({"preset": preset}, path)


def _of_run(path: Path, weights: str, task: str) -> Start:
    config = load_saved(path)
    if config.task != task:
        raise UserError(f"{path}: a run of task: {config.task}, but this data set is for task: {task}")
    model = _changes(config.model, type(config.model)())
    return Start({key: value for key, value in model.items() if key not in ("weights", "num_classes")}, weights, config)


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
