"""Ablates CPU kernel optimisations: times builds with one optimisation disabled against the full build.

python tools/ablate_kernels.py [--threads N] [--rounds N] [--only TEXT] [--scratch FOLDER] [--json FILE]

Every variant is compiled in a temporary folder and runs in its own process; the processes take turns with each call.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FULL = "full"
SIMD_LEVELS = ("avx512", "avx2", "baseline")
MSDA_CASES = (
    ("ms_deform_attn", "encoder-800x1066-b1", "local"),
    ("ms_deform_attn", "encoder-800x1066-b1", "uniform"),
    ("ms_deform_attn", "decoder-b4", "local"),
)
DEFORM_KV_ATTN_CASES = tuple(
    ("deform_kv_attn", case, "displaced") for case in ("stage3-224-b8", "stage4-224-b8", "stage1-224-b8")
)
PASSES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Optimization:
    """An optimisation of the kernels; replacing `old` by `new` in `file` disables it."""

    name: str
    file: str
    old: str
    new: str
    cases: tuple[tuple[str, str, str], ...]


MSDA_OPTIMIZATIONS = [
    Optimization(
        "tokens of a head copied together, in the backward pass with their gradients",
        "ms_deform_attn/cpu_interface.h",
        "return queries * samples() >= 2 * tokens;", "return false;", MSDA_CASES[:2],
    ),
    Optimization(
        "encoder queries from top to bottom on all levels together",
        "ms_deform_attn/cpu.cpp", "if (problem.queries != problem.tokens) {", "if (true) {", MSDA_CASES,
    ),
    Optimization(
        "prefetching", "ms_deform_attn/cpu_footprints.h",
        "__builtin_prefetch(from + i);", ";", MSDA_CASES,
    ),
]  # fmt: skip
DEFORM_KV_ATTN_OPTIMIZATIONS = [
    Optimization(
        "two neighbouring table cells gathered as one number", "deform_kv_attn/cpu_table.h",
        "#if ATTNZOO_VECTOR_BYTES > 16  // AVX2 and AVX-512", "#if 0", DEFORM_KV_ATTN_CASES,
    ),
    Optimization(
        "vectorised contiguous table access", "deform_kv_attn/cpu_table.h",
        "footprint.is_contiguous = any == 0;", "footprint.is_contiguous = any == 0 && level.width < 0;",
        DEFORM_KV_ATTN_CASES,
    ),
]  # fmt: skip
OPTIMIZATIONS = MSDA_OPTIMIZATIONS + DEFORM_KV_ATTN_OPTIMIZATIONS


def build(disabled: Sequence[Optimization], folder: Path) -> None:
    """Compile the package without these optimisations, unless `folder` holds a library."""
    if list(folder.glob("attnzoo/ops/*.so")):
        return
    ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "*.so", "__pycache__", "shared")
    shutil.copytree(ROOT, folder, ignore=ignored, symlinks=True)
    for optimization in disabled:
        source = folder / "csrc" / optimization.file
        text = source.read_text()
        if text.count(optimization.old) != 1:
            sys.exit(f"error: {optimization.file}: expected exactly one occurrence of {optimization.old}")
        source.write_text(text.replace(optimization.old, optimization.new))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, env=os.environ | {"ATTNZOO_CUDA": "0"}, check=True, capture_output=True)


class WorkerProcess:
    """A process that times calls with the library in `folder`, optionally limited to one ATTNZOO_SIMD level."""

    def __init__(self, folder: Path, threads: int, simd: str = ""):
        variables = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": str(threads)}
        variables |= {"ATTNZOO_SIMD": simd} if simd else {}
        command = [sys.executable, "-P", __file__, "--worker", "--threads", str(threads)]
        self.process = subprocess.Popen(
            command, cwd=folder, env=variables, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def time(self, call: Sequence[str]) -> float:
        """Seconds of one call: operator, case, pattern, pass."""
        assert self.process.stdin
        assert self.process.stdout
        print(*call, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def worker_main(threads: int) -> None:
    """Time the calls named on standard input.

    Each runs once untimed before: OpenMP threads of the previous worker spin for a while and may take its cores.
    """
    import torch

    from attnzoo.bench.operators import benchmark

    torch.set_num_threads(threads)
    device, calls = torch.device("cpu"), {}
    for line in sys.stdin:
        name, case_name, pattern, pass_name = line.split()
        if line not in calls:
            operator = benchmark.OPERATORS[name]
            case = operator.cases[case_name]
            tensors = operator.inputs(case, pattern, torch.float32, device)
            grad_output = torch.randn(operator.output_shape(case), generator=torch.Generator().manual_seed(1))
            fn = operator.implementations[benchmark.OURS].factory(case, device)
            calls[line] = benchmark.timed_call(fn, tensors, grad_output, backward=pass_name != "forward")
            calls[line]()
        calls[line]()
        start = time.perf_counter()
        calls[line]()
        print(time.perf_counter() - start, flush=True)


def compare(workers: dict[str, WorkerProcess], cases: Sequence[Sequence[str]], rounds: int) -> list[dict[str, object]]:
    """Seconds of all workers, which take turns; every round begins with the next one."""
    rows: list[dict[str, object]] = []
    for call in ((*case, pass_name) for case in cases for pass_name in PASSES):
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        order = list(workers)
        for _ in range(rounds):
            for name in order:
                seconds[name].append(workers[name].time(call))
            order = order[1:] + order[:1]
        rows.append({"call": list(call), "seconds": seconds})
    return rows


def measure(scratch: Path, threads: int, rounds: int, only: str = "") -> list[dict[str, object]]:
    """All optimisations, then all SIMD levels; or only the optimisations whose name contains a text.

    One build disables one optimisation of each operator, which halves the compile time.
    """
    full = scratch / FULL
    build([], full)
    rows = []
    for index, pair in enumerate(zip_longest(MSDA_OPTIMIZATIONS, DEFORM_KV_ATTN_OPTIMIZATIONS)):
        disabled = [optimization for optimization in pair if optimization]
        selected = [optimization for optimization in disabled if only in optimization.name]
        if not selected:
            continue
        build(disabled, scratch / str(index))  # both, because another run may reuse the library in --scratch
        for optimization in selected:
            folders = {FULL: (full, ""), optimization.name: (scratch / str(index), "")}
            with running(folders, threads) as workers:
                rows += compare(workers, optimization.cases, rounds)
            print(f"measured: {optimization.name}", file=sys.stderr, flush=True)
    if only:
        return rows
    with running({level: (full, level) for level in SIMD_LEVELS}, threads) as workers:
        return rows + compare(workers, (*MSDA_CASES, *DEFORM_KV_ATTN_CASES), rounds)


@contextmanager
def running(variants: dict[str, tuple[Path, str]], threads: int) -> Iterator[dict[str, WorkerProcess]]:
    """Worker processes by name, for folders and SIMD levels."""
    workers = {name: WorkerProcess(folder, threads, simd) for name, (folder, simd) in variants.items()}
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.stop()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("tools/ablate_kernels.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="only optimisations whose name contains TEXT; skips the SIMD levels"
    )
    parser.add_argument("--scratch", type=Path, help="build folder; libraries in it are reused")
    parser.add_argument("--json", type=Path, help="write all samples to this file")
    args = parser.parse_args(argv)
    if args.worker:
        worker_main(args.threads)
        return 0
    if not any(args.only in optimization.name for optimization in OPTIMIZATIONS):
        names = "; ".join(optimization.name for optimization in OPTIMIZATIONS)
        parser.error(f"--only {args.only}: not in the name of any optimisation: {names}")
    import torch

    from attnzoo.bench import records
    from attnzoo.bench.tables import TextTable, format_ratio

    torch.set_num_threads(args.threads)
    record = records.header("ablation", torch.device("cpu"), [])
    with tempfile.TemporaryDirectory() as temporary:
        record["rows"] = measure(args.scratch or Path(temporary), args.threads, args.rounds, args.only)
    lines = []
    for row in record["rows"]:
        (_, full), *others = row["seconds"].items()
        lines += [(name, *row["call"], format_ratio(samples, full)) for name, samples in others]
    header = ("without", "operator", "case", "pattern", "pass", "time without / with (quartiles)")
    print(TextTable("ablation of optimisations", header, lines, 5).markdown())
    if args.json:
        records.write(args.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
