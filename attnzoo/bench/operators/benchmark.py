"""`bench ops`: all implementations of an operator on the same inputs."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from attnzoo.bench import accuracy, memory, records, roofline
from attnzoo.bench.operators.base import (
    DTYPES,
    OURS,
    Implementation,
    Operator,
    OpFn,
    UnavailableError,
    dtype_name,
    forward_backward,
)
from attnzoo.bench.operators.decoder_values import DECODER_VALUES
from attnzoo.bench.operators.deform_kv_attn import DEFORM_KV_ATTN, DEFORM_KV_ATTN_MLP
from attnzoo.bench.operators.ms_deform_attn import MS_DEFORM_ATTN
from attnzoo.bench.operators.ms_deform_attn_fused import MS_DEFORM_ATTN_FUSED
from attnzoo.bench.operators.windows import NEIGHBORHOOD_ATTN, WINDOW_ATTN
from attnzoo.bench.roofline import PeakRates
from attnzoo.bench.select import ALL, filter_names, select_names
from attnzoo.bench.timing import time_interleaved

OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        MS_DEFORM_ATTN,
        MS_DEFORM_ATTN_FUSED,
        DECODER_VALUES,
        DEFORM_KV_ATTN,
        DEFORM_KV_ATTN_MLP,
        WINDOW_ATTN,
        NEIGHBORHOOD_ATTN,
    )
}
PASSES = ("forward", "forward+backward")
DEFAULT_DTYPES = {"cpu": ("float32",), "cuda": ("float32", "float16", "bfloat16")}


@dataclass(frozen=True)
class Measurement:
    """One operator on one set of inputs."""

    operator: Operator
    case: str
    pattern: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.operator.name} {self.case} {self.pattern} {dtype_name(self.dtype)}"


@dataclass(frozen=True)
class Settings:
    """`seconds` is the time per pass of a measurement; no measurement starts after `budget` seconds."""

    device: torch.device
    passes: Sequence[str] = PASSES
    implementations: Sequence[str] = (ALL,)
    seconds: float = 2.0
    budget: float = float("inf")


def plan(
    device: torch.device,
    operators: Sequence[str] = (ALL,),
    cases: Sequence[str] | None = None,
    patterns: Sequence[str] = (ALL,),
    dtypes: Sequence[str] | None = None,
) -> list[Measurement]:
    """The measurements in order; None selects the defaults of the device. Raises UserError for an unknown name."""
    selected = [OPERATORS[name] for name in select_names("operator", operators, OPERATORS)]
    if cases is not None:
        select_names("case", cases, {case for operator in selected for case in operator.cases})
    select_names("pattern", patterns, {pattern for operator in selected for pattern in operator.patterns})
    dtype_names = select_names("dtype", DEFAULT_DTYPES[device.type] if dtypes is None else dtypes, DTYPES)
    return [
        Measurement(operator, case, pattern, DTYPES[dtype])
        for operator in selected
        for case, dtype, pattern in product(
            operator.default_cases(device.type) if cases is None else filter_names(cases, operator.cases),
            dtype_names,
            filter_names(patterns, operator.patterns),
        )
    ]


def run(
    measurements: Sequence[Measurement],
    settings: Settings,
    on_progress: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """The record of all measurements; `on_progress` receives it after every row."""
    start = time.monotonic()
    operators = list({m.operator.name: m.operator for m in measurements}.values())
    packages = sorted({entry.package for operator in operators for entry in operator.implementations.values()})
    peak_rates = roofline.measure_peak_rates(operators, {m.dtype for m in measurements}, settings.device)
    record = records.header("ops", settings.device, packages)
    record |= {
        "roofline": asdict(peak_rates), "memory": memory.METHODS[settings.device.type], "rows": [], "skipped": [],
    }  # fmt: skip
    for measurement in measurements:
        if time.monotonic() - start > settings.budget:
            record["skipped"].append(str(measurement))
            continue
        record["rows"].append(run_measurement(measurement, settings, peak_rates))
        on_progress(record)
    return record


def run_measurement(measurement: Measurement, settings: Settings, peak_rates: PeakRates) -> dict[str, Any]:
    """One row of the record: all implementations of one operator on the same inputs."""
    operator, device, dtype = measurement.operator, settings.device, measurement.dtype
    case = operator.cases[measurement.case]
    tensors = operator.inputs(case, measurement.pattern, dtype, device)
    g = torch.Generator().manual_seed(1)
    grad_output = torch.randn(operator.output_shape(case), generator=g).to(device, dtype)
    expected = operator.reference(case, tensors, grad_output)
    backward = tuple(settings.passes) != ("forward",)
    entries: dict[str, dict[str, Any]] = {}
    fns: dict[str, OpFn] = {}
    for name in filter_names(settings.implementations, operator.implementations):
        implementation = operator.implementations[name]
        entries[name], fn = _load_and_check(implementation, case, operator, tensors, grad_output, expected, backward)
        if fn is not None:
            fns[name] = fn
    row: dict[str, Any] = {
        "operator": operator.name,
        "case": measurement.case,
        "sizes": str(case),
        "pattern": measurement.pattern,
        "dtype": dtype_name(dtype),
        "roofline_seconds": {},
        "implementations": entries,
    }
    for pass_name in settings.passes:
        is_backward = pass_name != "forward"
        calls = {name: timed_call(fn, tensors, grad_output, is_backward) for name, fn in fns.items()}
        for name, samples in time_interleaved(calls, device, settings.seconds).items():
            entries[name]["seconds"][pass_name] = samples
            forks = not operator.implementations[name].is_compiled or device.type == "cuda"
            entries[name]["peak_bytes"][pass_name] = memory.peak_memory(calls[name], device) if forks else None
        macs = operator.macs(case) * (3 if is_backward else 1)
        num_bytes = roofline.min_bytes(tensors, grad_output, is_backward)
        row["roofline_seconds"][pass_name] = roofline.roofline_seconds(operator, macs, num_bytes, dtype, peak_rates)
    return row


def _load_and_check(
    implementation: Implementation,
    case: Any,
    operator: Operator,
    tensors: tuple[Tensor, ...],
    grad_output: Tensor,
    expected: list[Tensor],
    backward: bool,
) -> tuple[dict[str, Any], OpFn | None]:
    """The implementation's entry in the row, and its function if output and, if `backward`, gradients are right."""
    entry: dict[str, Any] = {
        "state": "missing", "reason": implementation.install, "errors": {}, "seconds": {}, "peak_bytes": {},
    }  # fmt: skip
    try:
        fn = implementation.factory(case, grad_output.device)
        entry["errors"] = accuracy.max_relative_errors(fn, operator.tensors, tensors, grad_output, expected, backward)
    except ImportError:
        return entry, None
    except UnavailableError as error:
        return entry | {"state": "unavailable", "reason": str(error)}, None
    except Exception as error:  # third-party errors must not stop the benchmark
        message = " ".join(str(error).split())[:300]
        return entry | {"state": "failed", "reason": f"{type(error).__name__}: {message}"}, None
    mismatch = accuracy.check_tolerances(entry["errors"], grad_output.dtype)
    if mismatch:
        return entry | {"state": "mismatch", "reason": mismatch}, None
    return entry | {"state": "measured", "reason": None}, fn


def timed_call(fn: OpFn, tensors: tuple[Tensor, ...], grad_output: Tensor, backward: bool) -> Callable[[], object]:
    """A call of `fn(*tensors)` without gradients, or with those of all tensors if `backward`."""
    if backward:
        return lambda: forward_backward(fn, tensors, grad_output)

    def forward() -> Tensor:
        with torch.no_grad():
            return fn(*tensors)

    return forward


def failures(record: dict[str, Any]) -> list[str]:
    """Measurements in which our own implementation is wrong or raises."""
    return [
        f"{row['operator']} {row['case']} {row['pattern']} {row['dtype']}: {ours['reason']}"
        for row in record["rows"]
        if (ours := row["implementations"].get(OURS)) and ours["state"] in ("mismatch", "failed")
    ]


def availability(operator: Operator, device: torch.device) -> Iterator[tuple[Implementation, str]]:
    """Every implementation with "available", or the reason why it cannot run here."""
    case = next(iter(operator.cases.values()))
    for implementation in operator.implementations.values():
        try:
            implementation.factory(case, device)
        except ImportError:
            yield implementation, f"missing: {implementation.install}"
        except UnavailableError as error:
            yield implementation, f"unavailable: {error}"
        else:
            yield implementation, "available"
