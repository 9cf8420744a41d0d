"""Models ready to be drawn: built from experiment files, with random weights as after training."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from attnzoo import models
from attnzoo.config.load import Experiment
from attnzoo.inference.loaded import LoadedModel

EXPERIMENTS = Path(__file__).parents[2] / "experiments" / "base"


def drawable(file: str, *overrides: str, seed: int = 0, classes: int = 10) -> LoadedModel:
    """The model of an experiment file for digits; its weights are not those of a file."""
    settings = Experiment(EXPERIMENTS / file, ["name=drawn", *overrides]).config()
    torch.manual_seed(seed)
    model = models.build(settings.model, classes)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    return LoadedModel(model.eval(), settings, [f"digit {index}" for index in range(classes)], Path("none"))


def picture(path: Path, width: int = 64, height: int = 64) -> Path:
    """A picture of noise in a file."""
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
