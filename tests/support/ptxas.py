"""Registers, spills, stack and shared memory of each CUDA kernel, as reported by the compiler.

`python tests/support/ptxas.py` compiles all kernels and writes docs/results/cuda-kernels.md.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "docs" / "results" / "cuda-kernels.md"
ARCHS = ("80", "90", "100")
NOT_SOURCES = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")

# ms_deform_attn with vectorised heads (D = 32 among them) in the training dtypes, and deform_kv_attn up to D = 64;
# all published models have D = 32.
MAIN_PATH = re.compile(
    r"(forward|backward)_kernel<(float|Half|BFloat16), true, "
    r"|(forward|grad_query|grad_key_value)_kernel<(float|Half|BFloat16), (32|64)>"
)

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>.+?)' for 'sm_(?P<arch>\d+)'\n.*\n"
    r"\s+(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers(?:.* (?P<shared>\d+) bytes smem)?"
)

HEAD = """# CUDA kernels as compiled

Registers per thread of every kernel, as reported by `ptxas` with the flags of setup.py; {compiler}. Written by
`python tests/support/ptxas.py`. [Measured on a GPU](gpu.md).

A test compiles the kernels and fails on spills or stack frames in the main paths. The unfused `forward_kernel` may
spill up to 64 bytes: its launch bounds were the fastest [on a GPU](gpu.md). The main paths:

- `ms_deform_attn`: forward and backward with vectorised rows (`true`: a multiple of 16 bytes, such as D = 32) in float,
  Half and BFloat16
- `deform_kv_attn`: up to 64 channels per head in float, Half and BFloat16 (`forward_kernel<float, 32>`, `<float, 64>`,
  `grad_query_kernel`, `grad_key_value_kernel`)

Shared memory is the static part; the kernels of `deform_kv_attn` also request 22 to 84 KiB per block at launch.

{count} kernels, {spilling} of them with spills.

"""


@dataclass(frozen=True)
class Usage:
    """One kernel on one architecture; bytes but for `registers`."""

    kernel: str
    arch: str
    registers: int
    stack: int
    spilled: int
    shared: int


class NoCompilerError(RuntimeError):
    """setup.py finds no nvcc."""


def nvcc_version(log: str) -> str:
    """The version of the nvcc in a build log."""
    (nvcc,) = set(re.findall(r"\S+/nvcc(?= )", log))
    result = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return f"nvcc {re.search(r'release .*V([0-9.]+)', result)[1]}"


def compile_verbosely(folder: Path) -> str:
    """Build a copy of the sources for all of ARCHS into `folder`/lib; returns the compiler output.

    Raises NoCompilerError.
    """
    copy = folder / "attnzoo"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("csrc", "attnzoo"):
        shutil.copytree(ROOT / name, copy / name, ignore=NOT_SOURCES, symlinks=True)
    built = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", str(folder / "lib")],
        cwd=copy,
        env={
            **os.environ,
            "ATTNZOO_CUDA": "1",
            "ATTNZOO_CUDA_ARCHS": ";".join(f"{arch[:-1]}.{arch[-1]}" for arch in ARCHS),
            "NVCC_APPEND_FLAGS": "-Xptxas -v",
            "CFLAGS": "-O0",  # the CPU kernels are not needed, and compile in a third of the time
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if "nvcc was not found" in built.stdout:
        raise NoCompilerError(built.stdout.strip())
    assert built.returncode == 0, built.stdout[-4000:]
    return built.stdout


def read_usage(log: str) -> list[Usage]:
    plain = subprocess.run(["c++filt"], input=log, capture_output=True, text=True, check=True).stdout
    usages = [
        Usage(
            kernel=short_name(entry["name"]),
            arch=entry["arch"],
            registers=int(entry["registers"]),
            stack=int(entry["stack"]),
            spilled=int(entry["stores"]) + int(entry["loads"]),
            shared=int(entry["shared"] or 0),
        )
        for entry in ENTRY.finditer(plain)
    ]
    assert len(usages) == plain.count("Compiling entry function"), "cannot parse the compiler's report"
    return sorted(usages, key=lambda usage: (usage.kernel, int(usage.arch)))


def short_name(signature: str) -> str:
    """The kernel name with template arguments, without namespaces, parameters and result type."""
    name = re.sub(r"\b(attnzoo|ms_deform_attn|deform_kv_attn|c10)::", "", signature).removeprefix("void ")
    return re.split(r"\((?!anonymous)", name)[0].replace("> >", ">>")


def report(usages: Iterable[Usage], compiler: str) -> str:
    kernels: dict[str, list[Usage]] = {}
    for usage in usages:
        kernels.setdefault(usage.kernel, []).append(usage)
    spilling = sum(any(usage.spilled for usage in of_kernel) for of_kernel in kernels.values())
    lines = [HEAD.format(compiler=compiler, count=len(kernels), spilling=spilling)]
    lines.append("| kernel | " + " | ".join(f"sm_{arch}" for arch in ARCHS) + " | spilled | stack | shared |\n")
    lines.append("| --- |" + " ---: |" * (len(ARCHS) + 3) + "\n")
    for kernel, of_kernel in kernels.items():
        registers = [str(usage.registers) for usage in of_kernel]
        most = [str(max(getattr(usage, kind) for usage in of_kernel)) for kind in ("spilled", "stack", "shared")]
        lines.append(f"| `{kernel}` | " + " | ".join(registers + most) + " |\n")
    return "".join(lines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        log = compile_verbosely(Path(scratch))
        REPORT.write_text(report(read_usage(log), nvcc_version(log)))
