"""Whole models that are compared: what is timed of each, and on what."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Outputs = dict[str, Tensor]
Shape = tuple[int, int, int]


class Entrant(ABC):
    """A model as it is timed."""

    model: nn.Module

    @abstractmethod
    def predict(self, images: Tensor) -> Outputs:
        """Everything that it says of images (B, 3, H, W)."""

    @abstractmethod
    def loss(self, images: Tensor, targets: Any) -> Tensor:
        """The scalar to minimise, given targets of its kind."""


@dataclass(frozen=True)
class Kind:
    """Models with the same task.

    - `models`: their names
    - `entrants(name, tiny, device)`: implementations with the same weights, in float32 and without dropout, and in one
      line why some are missing; `tiny` is for trying the command
    - `targets(batch, device)`: what they are trained on
    - `forward`, `training`: images (B, H, W) of both works unless others are asked for
    """

    models: tuple[str, ...]
    entrants: Callable[[str, bool, torch.device], tuple[dict[str, Entrant], str | None]]
    targets: Callable[[int, torch.device], Any]
    forward: Shape
    training: Shape
