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
from attnzoo.models.inputs import random_inputs

ONE_VALUE = "Expected more than 1 value per channel"  # in the error of F.batch_norm in training


def dry_run(config: ModelConfig, num_classes: int, size: tuple[int, int], batch_size: int = 2) -> list[str]:
    """Build the model on the meta device and run it in training mode; returns the names of its parameters.

    `size` (h, w) and `batch_size` describe the batch of one process.

    Raises UserError for a model that cannot be built or run.
    """
    with torch.device("meta"):
        model = models.build(config, num_classes)
    with torch.no_grad():
        _forward(model, size, batch_size)
    return [name for name, _ in model.named_parameters()]


def unused_parameters(model: nn.Module, size: tuple[int, int], batch_size: int = 2) -> list[str]:
    """The names of trainable parameters on which no loss depends, so that they get no gradient.

    Found by running a copy of the model on the meta device, as in `dry_run`. Raises UserError if it does not run.
    """
    loss = partial(sum_of_loss_inputs, model.config.loss) if isinstance(model, Detector) else torch.sum
    model = copy_with_meta_parameters(model).to("meta")
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(
        loss(_forward(model, size, batch_size)), list(parameters.values()), allow_unused=True
    )
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]


def copy_with_meta_parameters(model: nn.Module) -> nn.Module:
    """A copy of the model with its parameters on the meta device; buffers keep their values."""
    meta = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, meta)


def _forward(model: nn.Module, size: tuple[int, int], batch_size: int) -> Any:
    """The output in training mode."""
    try:
        return model.train()(*random_inputs(model, batch_size, size, "meta"))
    except UserError:
        raise
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if ONE_VALUE in reason:
            raise UserError(
                f"data.batch_size: {batch_size} per process on images of {size[0]} x {size[1]} pixels leaves a batch "
                "norm one value per channel; use larger batches or images, or model.backbone.norm = 'frozen'",
                key=("data.batch_size", "model.backbone.norm"),
            ) from error
        message = f"model: does not run on images of {size[0]} x {size[1]} pixels: {reason}"
        raise UserError(message, key="model") from error
