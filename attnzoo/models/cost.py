"""What a model costs: parameters, multiply-accumulates and time."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import attnzoo.attention.flops  # noqa: F401  registers the formulas that torch lacks

WARMUP = 3  # calls before time counts: they allocate and choose algorithms
FEWEST, MOST = 10, 100  # timed calls


@dataclass(frozen=True)
class Cost:
    """Cost of inference.

    - `params`: parameters, each counted once; buffers such as those of frozen BatchNorm are none
    - `trainable`: those that training changes
    - `gflops`: what papers call GFLOPs: multiply-accumulates of one image in units of 10⁹, as `count_macs`
    - `ms`: milliseconds per image, the median of many
    """

    params: int
    trainable: int
    gflops: float
    ms: float


def measure(model: nn.Module, images: Tensor, mask: Tensor | None = None, *, seconds: float = 2.0) -> Cost:
    """The cost of `model(images, mask)` for images (B, 3, H, W) and their padding mask (B, H, W).

    Multiply-accumulates are those of the first image; time is that of the whole batch, divided by B: the median of
    10 to 100 calls, as many as fit into `seconds`. The model runs in evaluation mode without gradients and is given
    back in the modes it came in.
    """
    parameters = list(model.parameters())
    with _evaluating(model), torch.no_grad():
        macs = count_macs(model, images[:1], None if mask is None else mask[:1])
        times = _times(model, images, mask, seconds)
    return Cost(
        params=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        gflops=macs / 1e9,
        ms=1000 * statistics.median(times) / len(images),
    )


def count_macs(function: Any, *args: Any) -> int:
    """Multiply-accumulates of `function(*args)`: convolutions, matrix products, attentions and registered operators.

    Additions of biases, normalisations and activations are left out, as torch.utils.flop_counter does.
    """
    # The counter follows modules by hooks on gradients, which views of parameters lack without autograd.
    with _plain_multihead(), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops() // 2


@contextmanager
def _plain_multihead() -> Iterator[None]:
    """Keep nn.MultiheadAttention from its fused inference kernel, which no counter sees."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _times(model: nn.Module, images: Tensor, mask: Tensor | None, seconds: float) -> list[float]:
    for _ in range(WARMUP):
        _seconds(model, images, mask)
    times: list[float] = []
    while len(times) < FEWEST or (len(times) < MOST and sum(times) < seconds):
        times.append(_seconds(model, images, mask))
    return times


def _seconds(model: nn.Module, images: Tensor, mask: Tensor | None) -> float:
    _wait(images.device)
    start = time.perf_counter()
    model(images, mask)
    _wait(images.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
