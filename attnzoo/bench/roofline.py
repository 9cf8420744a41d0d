"""What the machine can do at most, measured in the same run: bytes copied and multiply-accumulates per second."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from attnzoo.bench.operators.base import HALF, Operation, spell
from attnzoo.bench.timing import time_calls

COPIED = {"cpu": 2**28, "cuda": 2**30}  # bytes, far beyond any cache
SIDE = {"cpu": 1024, "cuda": 8192}  # of square matrices: large enough for the full rate
SAMPLES = 7


@dataclass(frozen=True)
class Ceilings:
    """Samples of each rate; the ceiling is the best of them.

    - `copy`: bytes per second, read and written both counted
    - `macs`: multiply-accumulates per second of a matrix product, by dtype; float32 without TF32
    """

    copy: list[float]
    macs: dict[str, list[float]]


def measure(operations: Iterable[Operation], dtypes: Iterable[torch.dtype], device: torch.device) -> Ceilings:
    """The ceilings that bound these operations on inputs of `dtypes`, with as many threads as torch is set to."""
    needed = {_multiplied(operation, dtype) for operation, dtype in product(operations, dtypes)}
    return Ceilings(_copy_rates(device), {spell(dtype): _matrix_rates(dtype, device) for dtype in needed})


def _multiplied(operation: Operation, dtype: torch.dtype) -> torch.dtype:
    """Half-precision numbers that are not in a matrix product are multiplied in float32."""
    return torch.float32 if dtype in HALF and operation.unit == "fma" else dtype


def bound(operation: Operation, macs: float, moved: float, dtype: torch.dtype, ceilings: Ceilings) -> float:
    """The least seconds in which `moved` bytes and `macs` multiply-accumulates can be had."""
    rate = max(ceilings.macs[spell(_multiplied(operation, dtype))])
    return max(moved / max(ceilings.copy), macs / rate)


def traffic(tensors: tuple[Tensor, ...], output: Tensor, backward: bool) -> int:
    """Bytes that must move: each input read and each output written, once per pass."""
    given, result = sum(map(_bytes, tensors)), _bytes(output)
    forward = given + result
    return forward + (given + result + given if backward else 0)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _copy_rates(device: torch.device) -> list[float]:
    source = torch.ones(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    time_calls(lambda: target.copy_(source), 1, device)
    return [2 * source.numel() / time_calls(lambda: target.copy_(source), 1, device) for _ in range(SAMPLES)]


def _matrix_rates(dtype: torch.dtype, device: torch.device) -> list[float]:
    side = SIDE[device.type]
    matrix = torch.randn(side, side, device=device).to(dtype)
    time_calls(lambda: matrix @ matrix, 1, device)
    return [side**3 / time_calls(lambda: matrix @ matrix, 1, device) for _ in range(SAMPLES)]
