"""A benchmarked operator: its cases, its float64 reference, and its implementations."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from attnzoo import ops
from attnzoo.ops import library

OURS = "attnzoo"
BUILD = "pip install --no-build-isolation . in the source folder"
HALF = (torch.float16, torch.bfloat16)
OpFn = Callable[..., Tensor]
"""An implementation for one case: takes the operator's tensors, returns its output."""
Factory = Callable[[Any, torch.device], OpFn]


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype without "torch."."""
    return str(dtype).removeprefix("torch.")


DTYPES = {dtype_name(dtype): dtype for dtype in (torch.float32, torch.float64, *HALF)}


class UnavailableError(Exception):
    """An implementation cannot run here, for a reason other than a missing package."""


@dataclass(frozen=True)
class Implementation:
    """One implementation of an operator.

    `factory(case, device)` imports the package and returns the function to time. Its docstring names the version it was
    written for and how the arguments map. It raises ImportError or UnavailableError if it cannot run here; `install`
    says how to install it. `package` is the distribution whose version is recorded. `is_compiled`: by torch.compile,
    whose threads do not survive the fork in which memory is measured on a CPU.
    """

    name: str
    factory: Factory
    install: str
    package: str
    is_compiled: bool = False


@dataclass(frozen=True)
class Operator:
    """One benchmarked operator.

    - `cpu_cases`: the default cases on a CPU
    - `opt_in_cases`: run on no device unless requested by name
    - `tensors`: names of the tensor arguments, all differentiable
    - `inputs(case, pattern, dtype, device)`: those tensors, seeded
    - `output_shape(case)`
    - `reference(case, tensors, grad_output)`: output and gradients in float64, in plain PyTorch
    - `macs(case)`: multiply-accumulates of the forward pass; the backward pass has twice as many
    - `unit`: "fma" (elementwise) or "matrix" (matmul)
    - `implementations`: by name; "attnzoo" is the one that the others are compared with
    """

    name: str
    cases: dict[str, Any]
    cpu_cases: tuple[str, ...]
    patterns: tuple[str, ...]
    tensors: tuple[str, ...]
    inputs: Callable[[Any, str, torch.dtype, torch.device], tuple[Tensor, ...]]
    output_shape: Callable[[Any], tuple[int, ...]]
    reference: Callable[[Any, tuple[Tensor, ...], Tensor], list[Tensor]]
    macs: Callable[[Any], int]
    unit: Literal["fma", "matrix"] = "fma"
    opt_in_cases: tuple[str, ...] = ()
    implementations: dict[str, Implementation] = field(default_factory=dict)

    def default_cases(self, device: str) -> list[str]:
        """The cases that run on "cpu" or "cuda" unless others are requested."""
        if device == "cpu":
            return [case for case in self.cases if case in self.cpu_cases]
        return [case for case in self.cases if case not in self.opt_in_cases]

    def implementation(
        self, name: str, *, install: str, package: str, is_compiled: bool = False
    ) -> Callable[[Factory], Factory]:
        """Decorator that registers the factory of an implementation."""

        def register(factory: Factory) -> Factory:
            assert name not in self.implementations, f"{self.name}: duplicate implementation {name}"
            self.implementations[name] = Implementation(name, factory, install, package, is_compiled)
            return factory

        return register


def forward_backward(fn: OpFn, tensors: tuple[Tensor, ...], grad_output: Tensor) -> list[Tensor]:
    """The output of `fn(*tensors)` and its gradients with respect to every tensor."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = fn(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def check_flex_attention(query: Tensor) -> None:
    """Raise UnavailableError for what torch's flex_attention lacks on this device."""
    if query.device.type == "cuda":
        return
    if query.requires_grad:
        raise UnavailableError(f"has no backward pass for {query.device.type}; --passes forward measures it")
    if query.dtype == torch.float64:
        raise UnavailableError(f"has no float64 kernel for {query.device.type}")


def require_compiled(device: torch.device, operator: str) -> None:
    """Raise UnavailableError if attnzoo has no compiled kernel and would fall back to plain PyTorch."""
    state = ops.backends()[device.type]
    if state != "available":
        raise UnavailableError(state)
    if not library.has_kernel(device.type, operator):
        raise UnavailableError(f"no compiled {device.type} kernel for {operator}")


def in_float32(fn: OpFn) -> OpFn:
    """`fn` with half-precision inputs upcast to float32, for implementations that would round coordinates."""

    def upcast(value: Tensor, *others: Tensor) -> Tensor:
        if value.dtype not in HALF:
            return fn(value, *others)
        return fn(value.float(), *(other.float() for other in others)).to(value.dtype)

    return upcast
