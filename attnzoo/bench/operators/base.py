"""An operator under test: its cases, what it must compute and move, and who implements it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
Call = Callable[..., Tensor]
"""An implementation made ready for one case: the operation's tensors in, its output out."""
Load = Callable[[Any, torch.device], Call]


def spell(dtype: torch.dtype) -> str:
    """The name of a dtype without "torch."."""
    return str(dtype).removeprefix("torch.")


DTYPES = {spell(dtype): dtype for dtype in (torch.float32, torch.float64, *HALF)}


class UnavailableError(Exception):
    """Why an implementation cannot run here: it is not installed, or not made for the device or the case."""


@dataclass(frozen=True)
class Peer:
    """One implementation of an operation.

    `load(case, device)` imports what it needs and returns a function of the operation's tensors; its docstring says
    which version it was written for and how the arguments map. ImportError and UnavailableError mean that it cannot
    run here; `install` says what would change that. `package` is the distribution whose version is recorded.
    """

    name: str
    load: Load
    install: str
    package: str


@dataclass(frozen=True)
class Operation:
    """What is measured.

    - `brief`: the cases that are measured on a CPU unless others are asked for
    - `seldom`: those that are measured nowhere unless asked for
    - `tensors`: names of the arguments that are tensors, all differentiable
    - `inputs(case, pattern, dtype, device)`: those tensors, the same in every process
    - `output(case)`: the shape of the output
    - `authority(case, tensors, slope)`: output and gradients in float64, by plain PyTorch
    - `macs(case)`: multiply-accumulates of the forward pass; the backward pass has twice as many
    - `unit`: what carries them out: "fma" where every one needs an operand of its own, "matrix" for products
    - `peers`: implementations by name; "attnzoo" is the one that the others are compared with
    """

    name: str
    cases: dict[str, Any]
    brief: tuple[str, ...]
    patterns: tuple[str, ...]
    tensors: tuple[str, ...]
    inputs: Callable[[Any, str, torch.dtype, torch.device], tuple[Tensor, ...]]
    output: Callable[[Any], tuple[int, ...]]
    authority: Callable[[Any, tuple[Tensor, ...], Tensor], list[Tensor]]
    macs: Callable[[Any], int]
    unit: Literal["fma", "matrix"] = "fma"
    seldom: tuple[str, ...] = ()
    peers: dict[str, Peer] = field(default_factory=dict)

    def usual(self, device: str) -> list[str]:
        """The cases that are measured unless others are asked for."""
        return [case for case in self.cases if (case in self.brief if device == "cpu" else case not in self.seldom)]

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
