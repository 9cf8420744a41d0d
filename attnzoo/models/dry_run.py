"""A model tried out without memory or data: whether it runs, and what of it would train."""

from functools import partial
from typing import Any

import torch
from torch import nn

from attnzoo import models
from attnzoo.errors import UserError
from attnzoo.models.config import ModelConfig
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.models.detr.losses import sum_of_loss_inputs


def dry_run(config: ModelConfig, num_classes: int, size: tuple[int, int]) -> list[str]:
    """Build the model and run it on images of `size` (h, w); returns the names of its parameters.

    Raises UserError for what cannot be built or run.
    """
    model = _without_memory(config, num_classes)
    with torch.no_grad():
        _run(model, size)
    return [name for name, _ in model.named_parameters()]


def unused_parameters(config: ModelConfig, num_classes: int, size: tuple[int, int]) -> list[str]:
    """The names of the parameters that could train but that the model's losses do not depend on.

    Found with images of `size` (h, w). Raises UserError as `dry_run` does.
    """
    model = _without_memory(config, num_classes)
    loss = partial(sum_of_loss_inputs, config.loss) if isinstance(config, DetectorConfig) else torch.sum
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss(_run(model, size)), list(names.values()), allow_unused=True)
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]


def _without_memory(config: ModelConfig, num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return models.build(config, num_classes)


def _run(model: nn.Module, size: tuple[int, int]) -> Any:
    """What the model makes of two images, in training mode."""
    try:
        return model.train()(torch.empty(2, 3, *size, device="meta"))
    except UserError:
        raise
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"model: does not run on images of {size[0]} x {size[1]} pixels: {reason}") from error
