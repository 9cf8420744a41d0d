"""What each part of the CPU kernels gives: the library without the part beside the whole one, call by call.

python tools/ablate_kernels.py [--threads N] [--rounds N] [--only TEXT] [--scratch FOLDER] [--json FILE]

Every variant is compiled in a temporary folder and runs in a process of its own; all take turns with the same call.
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
WHOLE = "whole"
SAMPLING = (
    ("ms_deform_attn", "encoder-800x1066-b1", "local"),
    ("ms_deform_attn", "encoder-800x1066-b1", "uniform"),
    ("ms_deform_attn", "decoder-b4", "local"),
)
KEYS = tuple(("deform_kv_attention", case, "displaced") for case in ("stage3-224-b8", "stage4-224-b8", "stage1-224-b8"))
PASSES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Part:
    """A part of the kernels: `old` in `file` is replaced by `new` to be without it."""

    name: str
    file: str
    old: str
    new: str
    calls: tuple[tuple[str, str, str], ...]


SAMPLING_PARTS = [
    Part(
        "tokens of a head copied together, backward with their gradients", "ms_deform_attn/cpu.h",
        "return queries * samples() >= 2 * tokens;", "return false;", SAMPLING[:2],
    ),
    Part(
        "an encoder's queries from top to bottom on all levels together",
        "ms_deform_attn/cpu.cpp", "if (problem.queries != problem.tokens) {", "if (true) {", SAMPLING,
    ),
    Part(
        "samples asked for ahead of time", "ms_deform_attn/cpu_footprints.h",
        "__builtin_prefetch(from + i);", ";", SAMPLING,
    ),
]  # fmt: skip
KEY_PARTS = [
    Part(
        "two neighbouring cells of a table gathered as one number", "deform_kv_attn/table.h",
        "#if ATTNZOO_VECTOR_BYTES > 16  // AVX2 and AVX-512", "#if 0", KEYS,
    ),
    Part(
        "cells in a row read and written as vectors", "deform_kv_attn/table.h", "at.in_a_row = any == 0;",
        "at.in_a_row = any == 0 && level.width < 0;", KEYS,
    ),
]  # fmt: skip
PARTS = SAMPLING_PARTS + KEY_PARTS


def build(parts: Sequence[Part], folder: Path) -> None:
    """The package with a library compiled without these parts, unless it is there."""
    if list(folder.glob("attnzoo/ops/*.so")):
        return
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "*.so", "__pycache__", "shared")
    shutil.copytree(ROOT, folder, ignore=unwanted, symlinks=True)
    for part in parts:
        source = folder / "csrc" / part.file
        text = source.read_text()
        if text.count(part.old) != 1:
            sys.exit(f"error: {part.file} does not have once: {part.old}")
        source.write_text(text.replace(part.old, part.new))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, env=os.environ | {"ATTNZOO_CUDA": "0"}, check=True, capture_output=True)


class Variant:
    """A process with one of the libraries, and optionally ATTNZOO_SIMD."""

    def __init__(self, folder: Path, threads: int, simd: str = ""):
        variables = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": str(threads)}
        variables |= {"ATTNZOO_SIMD": simd} if simd else {}
        command = [sys.executable, "-P", __file__, "--worker", "--threads", str(threads)]
        self.process = subprocess.Popen(
            command, cwd=folder, env=variables, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def time(self, call: Sequence[str]) -> float:
        """Seconds of one call."""
        assert self.process.stdin
        assert self.process.stdout
        print(*call, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def work(threads: int) -> None:
    """Time the calls named on standard input.

    Before each it is made once untimed, which may share the cores with threads of the variant before: they wait awake.
    """
    import torch

    from attnzoo.bench.operators import benchmark
    from attnzoo.bench.operators.registered import OPERATIONS

    torch.set_num_threads(threads)
    device, known = torch.device("cpu"), {}
    for line in sys.stdin:
        name, case_name, pattern, label = line.split()
        if line not in known:
            operation = OPERATIONS[name]
            case = operation.cases[case_name]
            tensors = operation.inputs(case, pattern, torch.float32, device)
            slope = torch.randn(operation.output(case), generator=torch.Generator().manual_seed(1))
            call = operation.peers[benchmark.OURS].load(case, device)
            known[line] = benchmark.prepare(call, tensors, slope, backward=label != "forward")
            known[line]()
        known[line]()
        start = time.perf_counter()
        known[line]()
        print(time.perf_counter() - start, flush=True)


def compare(variants: dict[str, Variant], calls: Sequence[Sequence[str]], rounds: int) -> list[dict[str, object]]:
    """Seconds of all variants, which take turns; every round begins with the next one."""
    rows: list[dict[str, object]] = []
    for call in ((*call, label) for call in calls for label in PASSES):
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        order = list(variants)
        for _ in range(rounds):
            for name in order:
                seconds[name].append(variants[name].time(call))
            order = order[1:] + order[:1]
        rows.append({"call": list(call), "seconds": seconds})
    return rows


def measure(scratch: Path, threads: int, rounds: int, only: str = "") -> list[dict[str, object]]:
    """All parts, then all instruction sets; or only the parts whose names hold a text.

    A part of each operator is left out of one library: half the compiling.
    """
    whole = scratch / WHOLE
    build([], whole)
    rows = []
    for index, pair in enumerate(zip_longest(SAMPLING_PARTS, KEY_PARTS)):
        parts = [part for part in pair if part]
        chosen = [part for part in parts if only in part.name]
        if not chosen:
            continue
        build(parts, scratch / str(index))  # all, because another run may find the library there
        for part in chosen:
            with running({WHOLE: (whole, ""), part.name: (scratch / str(index), "")}, threads) as variants:
                rows += compare(variants, part.calls, rounds)
            print(f"measured: {part.name}", file=sys.stderr, flush=True)
    if only:
        return rows
    with running({level: (whole, level) for level in ("avx512", "avx2", "baseline")}, threads) as variants:
        return rows + compare(variants, (*SAMPLING, *KEYS), rounds)


@contextmanager
def running(variants: dict[str, tuple[Path, str]], threads: int) -> Iterator[dict[str, Variant]]:
    """Processes by name, from their folders and instruction sets."""
    started = {name: Variant(folder, threads, simd) for name, (folder, simd) in variants.items()}
    try:
        yield started
    finally:
        for variant in started.values():
            variant.stop()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("tools/ablate_kernels.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", metavar="TEXT", default="", help="parts whose names hold it, and no instruction sets")
    parser.add_argument("--scratch", type=Path, help="compile here, and use what is compiled here already")
    parser.add_argument("--json", type=Path, help="write all samples here")
    given = parser.parse_args(argv)
    if given.worker:
        work(given.threads)
        return 0
    if not any(given.only in part.name for part in PARTS):
        parser.error(f"--only {given.only}: no part's name holds it: {'; '.join(part.name for part in PARTS)}")
    import torch

    from attnzoo.bench import records
    from attnzoo.bench.tables import ratio

    torch.set_num_threads(given.threads)
    result = records.header("ablation", torch.device("cpu"), [])
    with tempfile.TemporaryDirectory() as temporary:
        result["rows"] = measure(given.scratch or Path(temporary), given.threads, given.rounds, given.only)
    lines = []
    for row in result["rows"]:
        (_, ours), *others = row["seconds"].items()
        lines += [(name, *row["call"], ratio(theirs, ours)) for name, theirs in others]
    header = ("without", "operator", "case", "pattern", "pass", "time without / with (quartiles)")
    print(records.Rows("what each part gives", header, lines, 5).markdown())
    if given.json:
        records.write(given.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
