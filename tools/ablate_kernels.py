"""Ablates CPU kernel optimisations: times builds with one optimisation disabled against the full build.

python tools/ablate_kernels.py [--threads N] [--rounds N] [--only TEXT] [--scratch FOLDER] [--json FILE]

Every variant is compiled in a temporary folder and runs in its own process; the processes take turns with each call.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch

from attnzoo.bench import builds, records
from attnzoo.bench.operators import benchmark, revisions
from attnzoo.bench.tables import TextTable, format_ratio

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
        "prefetching", "ms_deform_attn/cpu_packed_head.h",
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
    if (folder / builds.LIBRARY).exists():
        return
    builds.copy_sources(folder)
    for optimization in disabled:
        source = folder / "csrc" / optimization.file
        text = source.read_text()
        if text.count(optimization.old) != 1:
            sys.exit(f"error: {optimization.file}: expected exactly one occurrence of {optimization.old}")
        source.write_text(text.replace(optimization.old, optimization.new))
    builds.build(folder)


def compare(workers: dict[str, builds.Worker], cases: Sequence[Sequence[str]], rounds: int) -> list[dict[str, object]]:
    """Seconds of all workers, which take turns; every round begins with the next one."""
    rows: list[dict[str, object]] = []
    for name, case, pattern in cases:
        revisions.prepare(workers, benchmark.Measurement(benchmark.OPERATORS[name], case, pattern, torch.float32))
        for pass_name in benchmark.PASSES:
            seconds = builds.take_turns(workers, pass_name != "forward", 1, range(rounds))
            rows.append({"call": [name, case, pattern, pass_name], "seconds": seconds})
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
def running(variants: dict[str, tuple[Path, str]], threads: int) -> Iterator[dict[str, builds.Worker]]:
    """Worker processes by name, for folders and SIMD levels."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(builds.Worker(folder, threads, {"ATTNZOO_SIMD": simd} if simd else {}))
            for name, (folder, simd) in variants.items()
        }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("tools/ablate_kernels.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="only optimisations whose name contains TEXT; skips the SIMD levels"
    )
    parser.add_argument("--scratch", type=Path, help="build folder; libraries in it are reused")
    parser.add_argument("--json", type=Path, help="write all samples to this file")
    args = parser.parse_args(argv)
    if not any(args.only in optimization.name for optimization in OPTIMIZATIONS):
        names = "; ".join(optimization.name for optimization in OPTIMIZATIONS)
        parser.error(f"--only {args.only}: not in the name of any optimisation: {names}")
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
