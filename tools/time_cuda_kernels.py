"""Kernel times of builds of the operators, and of other implementations, in CUDA graphs: no launch overhead counts.

    python tools/time_cuda_kernels.py kernels.json --libraries a.so b.so --peers deformops-triton

Each library, a build of csrc, takes the place of attnzoo/ops/_C.abi3.so while it is timed, in a process of its own;
without --libraries that file is timed. Interrupted, it may leave another library there: build again.
"""

import argparse
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from attnzoo.bench.operators.base import DTYPES, OURS, Operator, OpFn, forward_backward
from attnzoo.bench.operators.benchmark import OPERATORS
from attnzoo.ops import library

CASES = {
    "ms_deform_attn": ("encoder-800x1066-b1", "encoder-800x1066-b4", "decoder-b4"),
    "deform_kv_attn": ("stage1-800x1333-b1", "stage1-800x1333-b2", "stage3-224-b8"),
}
CALLS, ROUNDS = 5, 9  # calls per graph, replays


def milliseconds(call: Callable[[], object]) -> float:
    """The median time of a call in a CUDA graph."""
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    graph.replay()
    times = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / CALLS)
    return round(median(times), 4)


def time_implementation(operator: Operator, name: str, dtypes: list[str]) -> dict[str, Any]:
    """Times in ms, peak MiB of the forward pass, and relative errors against float64, by case, dtype and pattern."""
    device = torch.device("cuda")
    results: dict[str, Any] = {}
    for case_name in CASES[operator.name]:
        case = operator.cases[case_name]
        fn = operator.implementations[name].factory(case, device)
        for dtype in dtypes:
            for pattern in operator.patterns:
                tensors = operator.inputs(case, pattern, DTYPES[dtype], device)
                grad = torch.randn(operator.output_shape(case)).to(device, DTYPES[dtype])
                expected = operator.reference(case, tensors, grad)
                actual = forward_backward(fn, tensors, grad)
                errors = [((a.double() - e).norm() / e.norm()).item() for a, e in zip(actual, expected, strict=True)]
                key = f"{case_name} {dtype} {pattern}"
                results[key] = time_passes(fn, tensors, grad) | {"errors": [float(f"{e:.1e}") for e in errors]}
    return results


def time_passes(fn: OpFn, tensors: tuple[Tensor, ...], grad: Tensor) -> dict[str, Any]:
    leaves = tuple(t.detach().requires_grad_() for t in tensors)

    def forward() -> Tensor:
        with torch.no_grad():
            return fn(*tensors)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(fn(*leaves), leaves, grad)

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    forward()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    return {
        "forward ms": milliseconds(forward), "forward+backward ms": milliseconds(both), "forward MiB": round(peak, 1)
    }  # fmt: skip


def install(build: Path) -> None:
    """Replace the library; processes that have loaded it keep the old file."""
    copied = Path(shutil.copy(build, library.LIBRARY.with_suffix(".new")))
    os.replace(copied, library.LIBRARY)


def _in_process(operator: str, name: str, dtypes: list[str], results: Any) -> None:
    try:
        results.put(time_implementation(OPERATORS[operator], name, dtypes))
    except Exception as error:  # another implementation's error must not stop the others
        results.put({"error": f"{type(error).__name__}: {error}"[:500]})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--operator", choices=CASES, default="ms_deform_attn")
    parser.add_argument("--libraries", type=Path, nargs="*", default=[])
    parser.add_argument("--peers", nargs="*", default=[], help="other implementations, as in `bench ops --list`")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    args = parser.parse_args()
    jobs: list[tuple[str, str, Path | None]] = [(path.stem, OURS, path) for path in args.libraries]
    jobs = (jobs or [(OURS, OURS, None)]) + [(peer, peer, None) for peer in args.peers]
    record: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "kernels": {}}
    context = multiprocessing.get_context("spawn")  # a new process loads the library that is there then
    built = library.LIBRARY.with_suffix(".built")
    shutil.copy(library.LIBRARY, built)
    for label, name, path in jobs:
        install(path or built)
        results = context.Queue()
        process = context.Process(target=_in_process, args=(args.operator, name, args.dtypes, results))
        process.start()
        record["kernels"][label] = results.get()
        process.join()
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        print(label, record["kernels"][label], flush=True)
    os.replace(built, library.LIBRARY)


if __name__ == "__main__":
    main()
