"""Roofline: the copy bandwidth and matmul throughput of the machine, measured in the same run."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from attnzoo.bench.operators.base import HALF, Operator, dtype_name
from attnzoo.bench.timing import time_calls

COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}  # far larger than any cache
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}  # of square matrices, large enough for the peak rate
SAMPLES = 7


@dataclass(frozen=True)
class PeakRates:
    """Samples of each rate; the peak is their maximum.

    - `copy`: bytes per second, read + write
    - `macs`: multiply-accumulates per second of a matmul, by dtype; float32 without TF32
    """

    copy: list[float]
    macs: dict[str, list[float]]


def measure_peak_rates(operators: Iterable[Operator], dtypes: Iterable[torch.dtype], device: torch.device) -> PeakRates:
    """The rates that bound these operators on inputs of `dtypes`, with torch's current number of threads."""
    compute_dtypes = {_compute_dtype(operator, dtype) for operator, dtype in product(operators, dtypes)}
    return PeakRates(
        _copy_bandwidths(device), {dtype_name(dtype): _matmul_rates(dtype, device) for dtype in compute_dtypes}
    )


def _compute_dtype(operator: Operator, dtype: torch.dtype) -> torch.dtype:
    """Half-precision elementwise FMAs run in float32."""
    return torch.float32 if dtype in HALF and operator.unit == "fma" else dtype


def roofline_seconds(
    operator: Operator, macs: float, num_bytes: float, dtype: torch.dtype, peak_rates: PeakRates
) -> float:
    """Lower bound on the time of `macs` multiply-accumulates and `num_bytes` of memory traffic."""
    mac_rate = max(peak_rates.macs[dtype_name(_compute_dtype(operator, dtype))])
    return max(num_bytes / max(peak_rates.copy), macs / mac_rate)


def min_bytes(tensors: tuple[Tensor, ...], output: Tensor, backward: bool) -> int:
    """Minimum memory traffic: each input read and each output written, once per pass."""
    input_bytes, output_bytes = sum(map(_num_bytes, tensors)), _num_bytes(output)
    forward = input_bytes + output_bytes
    return forward + (input_bytes + output_bytes + input_bytes if backward else 0)


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _copy_bandwidths(device: torch.device) -> list[float]:
    source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    time_calls(lambda: target.copy_(source), 1, device)
    return [2 * source.numel() / time_calls(lambda: target.copy_(source), 1, device) for _ in range(SAMPLES)]


def _matmul_rates(dtype: torch.dtype, device: torch.device) -> list[float]:
    size = MATMUL_SIZE[device.type]
    matrix = torch.randn(size, size, device=device).to(dtype)
    time_calls(lambda: matrix @ matrix, 1, device)
    return [size**3 / time_calls(lambda: matrix @ matrix, 1, device) for _ in range(SAMPLES)]
