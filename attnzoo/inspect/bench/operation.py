"""An operator under test: its cases, what it must compute and move, and who implements it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
Call = Callable[..., Tensor]
"""An implementation made ready for one case: the operation's tensors in, its output out."""
Load = Callable[[Any, torch.device], Call]


class UnavailableError(Exception):
    """Why an implementation cannot run here: it is not installed, or not made for the device or the case."""


@dataclass(frozen=True)
class Peer:
    """One implementation of an operation.

    `load(case, device)` imports what it needs and returns a function of the operation's tensors. ImportError and
    UnavailableError mean that it cannot run here; `install` says what would change that. `package` is the
    distribution whose version is recorded.
    """

    name: str
    load: Load
    install: str
    package: str


@dataclass(frozen=True)
class Operation:
    """What is measured.

    - `inputs(case, pattern, dtype, device)`: the tensors of one call, all differentiable, the same in every process
    - `authority(case, tensors, slope)`: output and gradients in float64, by plain PyTorch
    - `macs(case)`: multiply-accumulates of the forward pass; the backward pass has twice as many
    - `peers`: implementations by name; "attnzoo" is the one that the others are compared with
    """

    name: str
    cases: dict[str, Any]
    patterns: tuple[str, ...]
    inputs: Callable[[Any, str, torch.dtype, torch.device], tuple[Tensor, ...]]
    authority: Callable[[Any, tuple[Tensor, ...], Tensor], list[Tensor]]
    macs: Callable[[Any], int]
    peers: dict[str, Peer] = field(default_factory=dict)

    def peer(self, name: str, *, install: str, package: str) -> Callable[[Load], Load]:
        """Decorator that enters the `load` function of an implementation."""

        def enter(load: Load) -> Load:
            assert name not in self.peers, f"{self.name}: two peers are called {name}"
            self.peers[name] = Peer(name, load, install, package)
            return load

        return enter


def differentiate(call: Call, tensors: tuple[Tensor, ...], slope: Tensor) -> list[Tensor]:
    """Output of `call(*tensors)` and its gradients by every tensor, given that of the output."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = call(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, slope)]
