"""A lower bound on the time of multi-scale deformable attention with AVX2: its memory accesses alone.

    ATTNZOO_SIMD=avx2 ATEN_CPU_CAPABILITY=avx2 python tools/sampling_bound.py --threads 2 --seconds 10 --json FILE

Times sampling_bound.cpp beside the operator and grid_sample, in turns. It loads the four corners of every sample and
multiplies and adds each once, in the order of the operator, from heads that lie packed in memory with their padding;
with backward it also loads, adds to and stores the gradient of every corner. It neither copies heads nor computes
coordinates, weights, or gradients with respect to these: a kernel that visits every corner of every sample does more.
"""

import argparse
import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnzoo.bench import records
from attnzoo.bench.operators.base import OURS, forward_backward
from attnzoo.bench.operators.benchmark import PASSES
from attnzoo.bench.operators.ms_deform_attn import MS_DEFORM_ATTN, Case
from attnzoo.bench.tables import TextTable, format_ratio
from attnzoo.bench.timing import quartiles, time_interleaved, time_ratios

SOURCE = Path(__file__).with_suffix(".cpp")
CHANNELS = 32  # per head, in sampling_bound.cpp
BOUND, BASELINE = "bound", "grid_sample"
MARGIN = 1  # zero rows and columns around a map
Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Corners:
    """Where a case reads.

    - `rows` (M, Q, L·P): upper left corners, queries in the operator's order
    - `pitches` (L·P): rows from a corner to the one below
    """

    rows: Tensor
    pitches: Tensor
    num_rows: int


def corners(case: Case, sampling_locations: Tensor) -> Corners:
    """The corners of the first image's samples (B, Q, M, L, P, 2)."""
    starts, pitches, start = [], [], 0
    for height, width in case.shapes:
        starts.append(start)
        pitches.append(width + 2 * MARGIN)
        start += (height + 2 * MARGIN) * pitches[-1]
    sizes = torch.tensor([(width, height) for height, width in case.shapes])[:, None]
    upper_left = (sampling_locations[0] * sizes - 0.5).floor().long()
    x, y = upper_left.clamp(torch.tensor(-1), sizes - 1).unbind(
        -1
    )  # as in the operator, samples outside read something too
    pitch = torch.tensor(pitches)[:, None]
    rows = torch.tensor(starts)[:, None] + (y + MARGIN) * pitch + x + MARGIN
    rows = rows.flatten(2).transpose(0, 1)[:, _top_to_bottom(case)] + start * torch.arange(case.heads)[:, None, None]
    return Corners(
        rows.to(torch.int32).contiguous(),
        pitch.expand(-1, case.points).flatten().to(torch.int32).contiguous(),
        start * case.heads,
    )


def _top_to_bottom(case: Case) -> Tensor:
    """The order of an encoder's queries: rows of pixels of all levels, from the top of the image to the bottom."""
    if case.queries is not None:
        return torch.arange(case.num_queries)
    centers = [((torch.arange(h) + 0.5) / h).repeat_interleave(w) for h, w in case.shapes]
    return torch.cat(centers).argsort(stable=True)


def compile_bound(folder: Path) -> ctypes.CDLL:
    """sampling_bound.cpp as a library in `folder`. Raises CalledProcessError."""
    library = folder / "sampling_bound.so"
    flags = ("-std=c++20", "-O3", "-mavx2", "-mfma", "-fPIC", "-shared", "-pthread")
    subprocess.run(["g++", *flags, str(SOURCE), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def bound_calls(
    library: ctypes.CDLL, corners: Corners, values_and_gradients: Tensor, output_gradient: Tensor, threads: int
) -> Calls:
    """The accesses of both passes, to (rows, 2, 32) with (M, Q, 32); each call returns what it summed, (M, Q, 32)."""
    heads, queries, samples = corners.rows.shape
    value = values_and_gradients[:, 0].contiguous()
    output, products = torch.empty(2, *output_gradient.shape)
    sizes = [ctypes.c_int64(n) for n in (heads, queries, samples)]

    def call(function: str, *tensors: Tensor) -> None:
        getattr(library, function)(*(ctypes.c_void_p(t.data_ptr()) for t in tensors), *sizes, ctypes.c_int(threads))

    def forward() -> Tensor:
        call("forward", value, corners.rows, corners.pitches, output)
        return output

    def both() -> Tensor:
        forward()
        call("backward", values_and_gradients, corners.rows, corners.pitches, output_gradient, products)
        return products

    return dict(zip(PASSES, (forward, both), strict=True))


def operator_calls(case: Case, name: str, tensors: Sequence[Tensor], grad: Tensor) -> Calls:
    """Both passes of an implementation of ms_deform_attn."""
    fn = MS_DEFORM_ATTN.implementations[name].factory(case, torch.device("cpu"))

    def forward() -> Tensor:
        with torch.no_grad():
            return fn(*tensors)

    return dict(zip(PASSES, (forward, lambda: forward_backward(fn, tuple(tensors), grad)), strict=True))


def measure(case: Case, pattern: str, library: ctypes.CDLL, seconds: float) -> list[dict[str, Any]]:
    """One row for each pass: seconds of every call."""
    device = torch.device("cpu")
    tensors = MS_DEFORM_ATTN.inputs(case, pattern, torch.float32, device)
    grad = torch.randn(MS_DEFORM_ATTN.output_shape(case))
    read = corners(case, tensors[1])
    rows = torch.randn(read.num_rows, 2, CHANNELS)
    output_gradient = torch.randn(*read.rows.shape[:2], CHANNELS)
    calls: dict[str, Calls] = {
        BOUND: bound_calls(library, read, rows, output_gradient, torch.get_num_threads()),
        **{name: operator_calls(case, name, tensors, grad) for name in (OURS, BASELINE)},
    }
    return [
        {
            "case": case.name,
            "pattern": pattern,
            "pass": name,
            "seconds": time_interleaved({key: value[name] for key, value in calls.items()}, device, seconds),
        }
        for name in PASSES
    ]


def table(rows: Sequence[dict[str, Any]]) -> TextTable:
    """Their time over ours and over the bound's."""
    lines = []
    for row in rows:
        seconds = row["seconds"]
        lines.append(
            (
                row["case"], row["pattern"], row["pass"],
                *(f"{1000 * quartiles(seconds[name])[1]:.1f}" for name in (BASELINE, OURS, BOUND)),
                format_ratio(seconds[BASELINE], seconds[OURS]),
                format_ratio(seconds[BASELINE], seconds[BOUND]),
                f"{100 * quartiles(time_ratios(seconds[BOUND], seconds[OURS]))[1]:.0f} %",
            )
        )  # fmt: skip
    header = (
        "case", "pattern", "pass", "grid_sample, ms", "attnzoo, ms", "bound, ms",
        "grid_sample / attnzoo", "grid_sample / bound", "bound / attnzoo",
    )  # fmt: skip
    return TextTable("memory accesses alone", header, lines, 3)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("tools/sampling_bound.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=MS_DEFORM_ATTN.cases, default=["encoder-800x1066-b1"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="per case, pattern and pass (default: 10)")
    parser.add_argument("--json", type=Path, help="write all samples to this file")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    record = records.header("sampling bound", torch.device("cpu"), ["attnzoo"])
    with tempfile.TemporaryDirectory() as folder:
        library = compile_bound(Path(folder))
        record["rows"] = [
            row
            for case in args.cases
            for pattern in MS_DEFORM_ATTN.patterns
            for row in measure(MS_DEFORM_ATTN.cases[case], pattern, library, args.seconds)
        ]
    print(table(record["rows"]).markdown())
    if args.json:
        records.write(args.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
