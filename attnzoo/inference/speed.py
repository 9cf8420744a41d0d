"""Images per second of a loaded model."""

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from attnzoo import environment
from attnzoo.errors import plural
from attnzoo.inference.loaded import LoadedModel
from attnzoo.models.cost import time_calls

BATCHES = (1, 4)
SECONDS = 2.0  # per batch size


@dataclass(frozen=True)
class Speed:
    """Images per second by batch size, of images (height, width); the model alone, without reading images."""

    images_per_second: dict[int, float]
    size: tuple[int, int]
    device: str
    threads: int

    def __str__(self) -> str:
        rates = ", ".join(f"{rate:.4g} in batches of {batch}" for batch, rate in self.images_per_second.items())
        height, width = self.size
        machine = f"{self.device}, {plural(self.threads, 'thread')}"
        return f"images per second: {rates} ({width}x{height} pixels, the model alone, {machine})"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_speed(model: LoadedModel, image: Tensor) -> Speed:
    """The median of 10 to 100 calls on copies of a preprocessed image (3, h, w), as many as fit into two seconds."""
    rates = {}
    for batch in BATCHES:
        inputs = image.to(model.device).expand(batch, -1, -1, -1).contiguous()
        rates[batch] = batch / statistics.median(time_calls(model.forward, (inputs,), SECONDS))
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else environment.cpu_name()
    height, width = image.shape[-2:]
    return Speed(rates, (height, width), device, torch.get_num_threads())
