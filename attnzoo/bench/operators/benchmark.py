"""`bench ops`: every implementation of every operator on the same inputs, side by side."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from attnzoo.bench import accuracy, memory, records, roofline
from attnzoo.bench.operators.base import DTYPES, Call, Operation, Peer, UnavailableError, differentiate, spell
from attnzoo.bench.operators.peers import OURS
from attnzoo.bench.operators.registered import OPERATIONS
from attnzoo.bench.roofline import Ceilings
from attnzoo.bench.select import ALL, pick, present
from attnzoo.bench.timing import interleave

PASSES = ("forward", "forward+backward")
USUAL_DTYPES = {"cpu": ("float32",), "cuda": ("float32", "float16", "bfloat16")}


@dataclass(frozen=True)
class Measurement:
    """One operation on one set of inputs."""

    operation: Operation
    case: str
    pattern: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.operation.name} {self.case} {self.pattern} {spell(self.dtype)}"


@dataclass(frozen=True)
class Settings:
    """How to measure: on `device`, these `passes` and `peers`, `seconds` for every pass of every measurement.

    After `budget` seconds no measurement is begun any more.
    """

    device: torch.device
    passes: Sequence[str] = PASSES
    peers: Sequence[str] = (ALL,)
    seconds: float = 2.0
    budget: float = float("inf")


def plan(
    device: torch.device,
    operations: Sequence[str] = (ALL,),
    cases: Sequence[str] | None = None,
    patterns: Sequence[str] = (ALL,),
    dtypes: Sequence[str] | None = None,
) -> list[Measurement]:
    """What is measured, in order; None stands for what is usual on the device.

    Raises UserError, with the nearest name, for one that does not exist.
    """
    chosen = [OPERATIONS[name] for name in pick("operation", operations, OPERATIONS)]
    if cases is not None:
        pick("case", cases, {case for operation in chosen for case in operation.cases})
    pick("pattern", patterns, {pattern for operation in chosen for pattern in operation.patterns})
    kinds = pick("dtype", USUAL_DTYPES[device.type] if dtypes is None else dtypes, DTYPES)
    measurements = []
    for operation in chosen:
        wanted = operation.usual(device.type) if cases is None else present(cases, operation.cases)
        for case, dtype, pattern in product(wanted, kinds, present(patterns, operation.patterns)):
            measurements.append(Measurement(operation, case, pattern, DTYPES[dtype]))
    return measurements


def run(
    measurements: Sequence[Measurement],
    settings: Settings,
    progress: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """The record of all measurements; `progress` is called with it as it grows."""
    start = time.monotonic()
    operations = list({m.operation.name: m.operation for m in measurements}.values())
    packages = sorted({peer.package for operation in operations for peer in operation.peers.values()})
    limits = roofline.measure(operations, {m.dtype for m in measurements}, settings.device)
    result = records.header("ops", settings.device, packages)
    result |= {"ceilings": asdict(limits), "memory": memory.METHODS[settings.device.type], "rows": [], "left_out": []}
    for measurement in measurements:
        if time.monotonic() - start > settings.budget:
            result["left_out"].append(str(measurement))
            continue
        result["rows"].append(measure(measurement, settings, limits))
        progress(result)
    return result


def measure(measurement: Measurement, settings: Settings, limits: Ceilings) -> dict[str, Any]:
    """One row of the record: all implementations of one operation on the same inputs."""
    operation, device, dtype = measurement.operation, settings.device, measurement.dtype
    case = operation.cases[measurement.case]
    tensors = operation.inputs(case, measurement.pattern, dtype, device)
    slope = torch.randn(operation.output(case), generator=torch.Generator().manual_seed(1)).to(device, dtype)
    truth = operation.authority(case, tensors, slope)
    found: dict[str, dict[str, Any]] = {}
    calls: dict[str, Call] = {}
    for peer in (operation.peers[name] for name in present(settings.peers, operation.peers)):
        found[peer.name], call = _admit(peer, case, operation, tensors, slope, truth)
        if call is not None:
            calls[peer.name] = call
    row: dict[str, Any] = {
        "operation": operation.name,
        "case": measurement.case,
        "sizes": str(case),
        "pattern": measurement.pattern,
        "dtype": spell(dtype),
        "bound_seconds": {},
        "implementations": found,
    }
    for label in settings.passes:
        backward = label != "forward"
        passes = {name: prepare(call, tensors, slope, backward) for name, call in calls.items()}
        for name, samples in interleave(passes, device, settings.seconds).items():
            found[name]["seconds"][label] = samples
            found[name]["peak_bytes"][label] = memory.peak(passes[name], device)
        work, moved = operation.macs(case) * (3 if backward else 1), roofline.traffic(tensors, slope, backward)
        row["bound_seconds"][label] = roofline.bound(operation, work, moved, dtype, limits)
    return row


def _admit(
    peer: Peer, case: Any, operation: Operation, tensors: tuple[Tensor, ...], slope: Tensor, truth: list[Tensor]
) -> tuple[dict[str, Any], Call | None]:
    """What is known of an implementation before it is timed, and its call if it computes the right thing."""
    entry: dict[str, Any] = {"state": "missing", "reason": peer.install, "errors": {}, "seconds": {}, "peak_bytes": {}}
    try:
        call = peer.load(case, slope.device)
        entry["errors"] = accuracy.errors(call, operation.tensors, tensors, slope, truth)
    except ImportError:
        return entry, None
    except UnavailableError as error:
        return entry | {"state": "unavailable", "reason": str(error)}, None
    except Exception as error:  # whatever goes wrong in the code of others costs their own rows alone
        what = " ".join(str(error).split())[:300]
        return entry | {"state": "failed", "reason": f"{type(error).__name__}: {what}"}, None
    wrong = accuracy.verdict(entry["errors"], slope.dtype)
    if wrong:
        return entry | {"state": "disagrees", "reason": wrong}, None
    return entry | {"state": "measured", "reason": None}, call


def prepare(call: Call, tensors: tuple[Tensor, ...], slope: Tensor, backward: bool) -> Callable[[], object]:
    """What is timed: `call(*tensors)`, with its gradients given that of the output if `backward`."""
    if backward:
        return lambda: differentiate(call, tensors, slope)

    def forward() -> Tensor:
        with torch.no_grad():
            return call(*tensors)

    return forward


def faults(record: dict[str, Any]) -> list[str]:
    """Where this package's own operators are wrong or fail."""
    return [
        f"{row['operation']} {row['case']} {row['pattern']} {row['dtype']}: {ours['reason']}"
        for row in record["rows"]
        if (ours := row["implementations"].get(OURS)) and ours["state"] in ("disagrees", "failed")
    ]


def availability(operation: Operation, device: torch.device) -> Iterator[tuple[Peer, str]]:
    """Every implementation: "available", or why it cannot run here and what would change that."""
    case = next(iter(operation.cases.values()))
    for peer in operation.peers.values():
        try:
            peer.load(case, device)
        except ImportError:
            yield peer, f"missing: {peer.install}"
        except UnavailableError as error:
            yield peer, f"unavailable: {error}"
        else:
            yield peer, "available"
