"""A model tried out without memory or data: whether it runs, and what of it would train."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnzoo import models
from attnzoo.config.schema import DetectorConfig, ModelConfig
from attnzoo.errors import UserError
from attnzoo.models.detr.losses import seen


@dataclass(frozen=True)
class Trial:
    """The names of a model's parameters, and of those that could train but that its losses do not depend on."""

    parameters: list[str]
    untrained: list[str]


def try_out(config: ModelConfig, num_classes: int, size: tuple[int, int]) -> Trial:
    """Build the model and run it on images of `size` (h, w). Raises UserError for what cannot be built or run."""
    with torch.device("meta"):
        model = models.build(config, num_classes)
    loss = partial(seen, config.loss) if isinstance(config, DetectorConfig) else torch.sum
    return Trial([name for name, _ in model.named_parameters()], untrained(model, size, loss))


def untrained(model: nn.Module, size: tuple[int, int], loss: Callable[[Any], Tensor]) -> list[str]:
    """The names of the trainable parameters that `loss` of the model's output does not depend on.

    `model` lies on the meta device and is given two images of `size` (h, w), in training mode. Raises UserError if it
    does not run on them.
    """
    try:
        output = model.train()(torch.empty(2, 3, *size, device="meta"))
    except UserError:
        raise
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"model: does not run on images of {size[0]} x {size[1]} pixels: {reason}") from error
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss(output), list(names.values()), allow_unused=True)
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]
