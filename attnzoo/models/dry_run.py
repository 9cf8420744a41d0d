"""Dry runs on the meta device: whether a model runs, and which of its parameters are unused."""

import copy
from functools import partial
from typing import Any

import torch
from torch import nn

from attnzoo import models
from attnzoo.errors import UserError
from attnzoo.models.config import ModelConfig
from attnzoo.models.detr.detector import Detector
from attnzoo.models.detr.losses import sum_of_loss_inputs


def dry_run(config: ModelConfig, num_classes: int, size: tuple[int, int]) -> list[str]:
    """Build the model on the meta device and run it on images of `size` (h, w); returns the names of its parameters.

    Raises UserError for a model that cannot be built or run.
    """
    with torch.device("meta"):
        model = models.build(config, num_classes)
    with torch.no_grad():
        _forward(model, size)
    return [name for name, _ in model.named_parameters()]


def unused_parameters(model: nn.Module, size: tuple[int, int]) -> list[str]:
    """The names of trainable parameters on which no loss depends, so that they get no gradient.

    Found by running a copy of the model on the meta device with images of `size` (h, w). Raises UserError if it does
    not run.
    """
    loss = partial(sum_of_loss_inputs, model.config.loss) if isinstance(model, Detector) else torch.sum
    model = copy_with_meta_parameters(model).to("meta")
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss(_forward(model, size)), list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]


def copy_with_meta_parameters(model: nn.Module) -> nn.Module:
    """A copy of the model with its parameters on the meta device; buffers keep their values."""
    meta = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, meta)


def _forward(model: nn.Module, size: tuple[int, int]) -> Any:
    """The output for two images, in training mode."""
    try:
        return model.train()(torch.empty(2, 3, *size, device="meta"))
    except UserError:
        raise
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"model: does not run on images of {size[0]} x {size[1]} pixels: {reason}"
        raise UserError(message, key="model") from error
