"""Dry runs on the meta device: whether a model runs, and which of its parameters are unused."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from attnzoo import models
from attnzoo.attention import ATTENTIONS, Attention
from attnzoo.errors import UserError, describe
from attnzoo.models.config import ModelConfig
from attnzoo.models.detr.detector import Detector
from attnzoo.models.detr.losses import sum_of_loss_inputs
from attnzoo.models.inputs import random_inputs

MAX_MODULES = 10_000
MAX_PARAMETERS = 10**11  # 400 GB
ONE_VALUE = "Expected more than 1 value per channel"  # in the error of F.batch_norm in training


def dry_run(config: ModelConfig, num_classes: int, size: tuple[int, int], batch_size: int = 2) -> list[str]:
    """Build the model on the meta device and run it in training mode; returns the names of its parameters.

    `size` (h, w) and `batch_size` describe the batch of one process.

    Raises UserError for a model that cannot be built or run.
    """
    with torch.device("meta"), _limited_modules(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")  # an error says more
        try:
            model = models.build(config, num_classes)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # of a plugin, or of torch for sizes without sense
            raise UserError(f"model: cannot be built: {describe(error)}", key="model") from error
    parameters = sum(p.numel() for p in model.parameters())
    if parameters > MAX_PARAMETERS:
        message = f"model: {parameters:,} parameters: expected at most {MAX_PARAMETERS:,}"
        raise UserError(message, key="model")
    with torch.no_grad(), _checked_shapes(model):
        _forward(model, size, batch_size)
    return [name for name, _ in model.named_parameters()]


@contextmanager
def _limited_modules() -> Iterator[None]:
    """Raise UserError when more than MAX_MODULES modules are built: a number of layers may be without sense."""
    built = 0

    def count(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        nonlocal built
        built += 1
        if built > MAX_MODULES:
            raise UserError(f"model: has more than {MAX_MODULES:,} modules; use fewer layers", key="model")

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _checked_shapes(model: nn.Module) -> Iterator[None]:
    """Raise UserError for an attention of the model that does not return (B, Q, C)."""

    def check(path: str, module: Attention, inputs: tuple[Any, ...], output: Any) -> None:
        expected = tuple(inputs[0].tokens.shape) if inputs else None
        given = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        if expected is not None and given != expected:
            name = next((name for name in ATTENTIONS.names() if ATTENTIONS.get(name) is type(module)), "")
            attention = f"attention {(name or type(module).__name__)!r} in role {module.slot.role}"
            message = f"model.{path}: {attention} returned {given}: expected {expected}, (B, Q, C) of its queries"
            raise UserError(message, key="model")

    attentions = [(path, module) for path, module in model.named_modules() if isinstance(module, Attention)]
    handles = [module.register_forward_hook(partial(check, path)) for path, module in attentions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
    except (Exception, SystemExit) as error:
        reason = describe(error)
        if ONE_VALUE in reason:
            raise UserError(
                f"data.batch_size: {batch_size} per process on images of {size[0]} x {size[1]} pixels leaves a batch "
                "norm one value per channel; use larger batches or images, or model.backbone.norm = 'frozen'",
                key=("data.batch_size", "model.backbone.norm"),
            ) from error
        message = f"model: does not run on images of {size[0]} x {size[1]} pixels: {reason}"
        raise UserError(message, key="model") from error
