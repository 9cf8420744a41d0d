"""Cost of a model at inference: parameters, multiply-accumulates (MACs) and latency."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import attnzoo.attention.flops  # noqa: F401  registers FLOP formulas
from attnzoo.attention import Attention
from attnzoo.geometry import Pyramid, Queries

WARMUP_CALLS = 3  # untimed: they allocate memory and select algorithms
MIN_CALLS, MAX_CALLS = 10, 100  # timed


@dataclass(frozen=True)
class Cost:
    """Cost of inference.

    - `params`: number of parameters, shared ones counted once; buffers, such as frozen BatchNorm, are not included
    - `trainable`: number of parameters that require gradients
    - `gflops`: MACs of one image by the algorithm, in units of 10⁹, which papers call GFLOPs; see `count_macs`
    - `ms`: median latency per image in milliseconds
    """

    params: int
    trainable: int
    gflops: float
    ms: float


@dataclass(frozen=True)
class ModuleCost:
    """Parameters of a part of a model, and its MACs for one image.

    - `macs`: what the algorithm needs, as papers count it
    - `extra_macs`: what the implementation of its attentions adds, see `Attention.extra_flops`
    """

    params: int
    macs: int
    extra_macs: int


def measure(model: nn.Module, *inputs: Tensor | None, seconds: float = 2.0) -> Cost:
    """The cost of `model(*inputs)` for a batch: images (B, 3, H, W) and their padding mask (B, H, W) or None, say.

    MACs are counted for the first image. Latency is the time of the whole batch divided by B, the median of 10 to 100
    calls, as many as fit into `seconds`. The model runs in evaluation mode without gradients; the training modes of
    its modules are restored.
    """
    batch = inputs[0]
    assert batch is not None
    parameters = list(model.parameters())
    with _eval_mode(model), torch.no_grad():
        counted = count_modules(model, *(None if tensor is None else tensor[:1] for tensor in inputs))
        times = time_calls(model, inputs, seconds)
    return Cost(
        params=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        gflops=sum(cost.macs for cost in counted.values()) / 1e9,
        ms=1000 * statistics.median(times) / len(batch),
    )


def count_macs(function: Any, *args: Any) -> int:
    """MACs that `function(*args)` computes: convolutions, matrix products, attentions and registered operators.

    Biases, normalisation and activations are not counted, as in torch.utils.flop_counter.
    """
    with _flop_counter() as counter:
        function(*args)
    return counter.get_total_flops() // 2


def count_modules(model: nn.Module, *args: Any, group: Callable[[str], str] = lambda path: "") -> dict[str, ModuleCost]:
    """Parameters and MACs of `model(*args)` for one image, by the group of each module, in the order of the modules.

    `group` maps the dotted path of a module, "" for the model itself, to the name of its group. An operation belongs to
    the innermost module that runs it, a parameter to the first module that has it: the groups sum to the whole model.
    """
    groups = {module: group(path) for path, module in model.named_modules()}
    params, macs, extra = (dict.fromkeys(groups.values(), 0) for _ in range(3))
    seen: set[nn.Parameter] = set()
    for module, name in groups.items():
        own = [parameter for parameter in module.parameters(recurse=False) if parameter not in seen]
        params[name] += sum(parameter.numel() for parameter in own)
        seen.update(own)
    running = [groups[model]]
    attending: list[nn.Module] = []  # an attention may contain another, whose cost is part of its own
    counted = 0

    def attribute() -> None:
        nonlocal counted
        total = counter.get_total_flops() // 2
        macs[running[-1]] += total - counted
        counted = total

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        attribute()
        running.append(groups[module])
        if isinstance(module, Attention):
            if not attending:
                extra[groups[module]] += _extra_macs(module, *inputs)
            attending.append(module)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        attribute()
        running.pop()
        if isinstance(module, Attention):
            attending.pop()

    hooks = [hook for module in groups for hook in (
        module.register_forward_pre_hook(enter), module.register_forward_hook(leave)
    )]  # fmt: skip
    try:
        with _flop_counter() as counter:
            model(*args)
            attribute()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: ModuleCost(params[name], macs[name] - extra[name], extra[name]) for name in params}


def _extra_macs(attention: Attention, queries: Queries, memory: Pyramid) -> int:
    sizes = queries.tokens.shape[1] if queries.layout is None else queries.layout
    return attention.extra_flops(sizes, memory.layout)


@contextmanager
def _flop_counter() -> Iterator[FlopCounterMode]:
    # FlopCounterMode tracks modules by gradient hooks, which fail on views of parameters without autograd.
    with _mha_fastpath_disabled(), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        yield counter


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


def time_calls(model: Callable[..., Any], inputs: Sequence[Tensor | None], seconds: float) -> list[float]:
    """Seconds of 10 to 100 calls `model(*inputs)`, as many as fit into `seconds`, after three that are not timed."""
    for _ in range(WARMUP_CALLS):
        _time_call(model, inputs)
    times: list[float] = []
    while len(times) < MIN_CALLS or (len(times) < MAX_CALLS and sum(times) < seconds):
        times.append(_time_call(model, inputs))
    return times


def _time_call(model: Callable[..., Any], inputs: Sequence[Tensor | None]) -> float:
    device = next(tensor.device for tensor in inputs if tensor is not None)
    _synchronize(device)
    start = time.perf_counter()
    model(*inputs)
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
