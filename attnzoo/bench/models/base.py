"""Benchmarked models: what is timed, and on which inputs."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Outputs = dict[str, Tensor]
Shape = tuple[int, int, int]


class BenchModel(ABC):
    """One implementation of a model, as it is timed."""

    model: nn.Module

    @abstractmethod
    def predict(self, images: Tensor) -> Outputs:
        """Model outputs by name for images (B, 3, H, W)."""

    @abstractmethod
    def loss(self, images: Tensor, targets: Any) -> Tensor:
        """The scalar training loss for targets of its task."""


@dataclass(frozen=True)
class BenchTask:
    """Models with the same inputs and targets.

    - `models`: their names
    - `build_models(name, tiny, device)`: implementations with the same weights, in float32 and without dropout, and the
      reason if one is missing; `tiny` is for smoke tests
    - `make_targets(batch, device)`: training targets
    - `forward`, `training`: default input shapes (B, H, W) of the forward pass and of the training step
    """

    models: tuple[str, ...]
    build_models: Callable[[str, bool, torch.device], tuple[dict[str, BenchModel], str | None]]
    make_targets: Callable[[int, torch.device], Any]
    forward: Shape
    training: Shape
