"""Cost of a model at inference: parameters, multiply-accumulates (MACs) and latency."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import attnzoo.attention.flops  # noqa: F401  registers FLOP formulas

WARMUP_CALLS = 3  # untimed: they allocate memory and select algorithms
MIN_CALLS, MAX_CALLS = 10, 100  # timed


@dataclass(frozen=True)
class Cost:
    """Cost of inference.

    - `params`: number of parameters, shared ones counted once; buffers, such as frozen BatchNorm, are not included
    - `trainable`: number of parameters that require gradients
    - `gflops`: MACs of one image in units of 10⁹, which papers call GFLOPs; see `count_macs`
    - `ms`: median latency per image in milliseconds
    """

    params: int
    trainable: int
    gflops: float
    ms: float


def measure(model: nn.Module, images: Tensor, mask: Tensor | None = None, *, seconds: float = 2.0) -> Cost:
    """The cost of `model(images, mask)` for images (B, 3, H, W) and their padding mask (B, H, W).

    MACs are counted for the first image. Latency is the time of the whole batch divided by B, the median of 10 to 100
    calls, as many as fit into `seconds`. The model runs in evaluation mode without gradients; the training modes of
    its modules are restored.
    """
    parameters = list(model.parameters())
    with _eval_mode(model), torch.no_grad():
        macs = count_macs(model, images[:1], None if mask is None else mask[:1])
        times = _time_calls(model, images, mask, seconds)
    return Cost(
        params=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        gflops=macs / 1e9,
        ms=1000 * statistics.median(times) / len(images),
    )


def count_macs(function: Any, *args: Any) -> int:
    """MACs of `function(*args)`: convolutions, matrix products, attentions and registered operators.

    Biases, normalisation and activations are not counted, as in torch.utils.flop_counter.
    """
    # FlopCounterMode tracks modules by gradient hooks, which fail on views of parameters without autograd.
    with _mha_fastpath_disabled(), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops() // 2


@contextmanager
def _mha_fastpath_disabled() -> Iterator[None]:
    """Disable the fused inference kernel of nn.MultiheadAttention, which FlopCounterMode does not see."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _time_calls(model: nn.Module, images: Tensor, mask: Tensor | None, seconds: float) -> list[float]:
    for _ in range(WARMUP_CALLS):
        _time_call(model, images, mask)
    times: list[float] = []
    while len(times) < MIN_CALLS or (len(times) < MAX_CALLS and sum(times) < seconds):
        times.append(_time_call(model, images, mask))
    return times


def _time_call(model: nn.Module, images: Tensor, mask: Tensor | None) -> float:
    _synchronize(images.device)
    start = time.perf_counter()
    model(images, mask)
    _synchronize(images.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
