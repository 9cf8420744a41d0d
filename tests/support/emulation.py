"""The CUDA operators compiled for the CPU over tests/ops/emulation, as `torch.ops.attnzoo_emulated`.

Set CXXFLAGS="-fsanitize=address,undefined" and LD_PRELOAD="libasan.so libubsan.so" (paths of g++ -print-file-name)
to check memory accesses too, and ASAN_OPTIONS=detect_leaks=0, because Python leaks.
"""

import ctypes
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.cpp_extension import include_paths

from attnzoo import ops  # noqa: F401  (defines the operator schemas)

ROOT = Path(__file__).parents[2]
EMULATION = ROOT / "tests" / "ops" / "emulation"
OPERATORS = tuple(
    f"{name}{direction}"
    for name in ("ms_deform_attn", "ms_deform_attn_fused", "deform_kv_attn")
    for direction in ("", "_backward")
)
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Werror", "-Wno-unknown-pragmas"]
MACROS = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000"]


def compile_library(folder: Path) -> Path:
    """Compile csrc/**/*.cu with the C++ compiler into a library in `folder`."""
    compiler = [*os.environ.get("CXX", "c++").split(), *os.environ.get("CXXFLAGS", "").split()]
    includes = [f"-I{EMULATION}", *(f"-I{path}" for path in include_paths())]
    renamed = ["-include", str(EMULATION / "renamed.h"), "-x", "c++"]
    sources = [(path, renamed) for path in sorted((ROOT / "csrc").rglob("*.cu"))]
    sources.append((EMULATION / "emulation.cpp", []))
    objects = [folder / f"{path.parent.name}-{path.stem}.o" for path, _ in sources]
    compilers = [
        subprocess.Popen([*compiler, *FLAGS, *MACROS, *includes, *extra, "-c", str(path), "-o", str(target)])
        for (path, extra), target in zip(sources, objects, strict=True)
    ]
    assert [process.wait() for process in compilers] == [0] * len(compilers)
    library = folder / "emulated.so"
    torch_libraries = Path(torch.__file__).parent / "lib"
    linked = [*map(str, objects), f"-L{torch_libraries}", "-ltorch_cpu"]
    subprocess.run([*compiler, "-shared", "-Wl,-Bsymbolic", "-o", str(library), *linked], check=True)
    return library


class Emulation:
    """The emulated operators: `ops` has the names of `torch.ops.attnzoo`."""

    def __init__(self, library: Path):
        self._library = torch.library.Library("attnzoo_emulated", "DEF")
        for name in OPERATORS:
            schema = str(getattr(torch.ops.attnzoo, name).default._schema)
            self._library.define(schema.removeprefix("attnzoo::"))
        torch.ops.load_library(library)
        self.ops = torch.ops.attnzoo_emulated
        self._seed = ctypes.CDLL(str(library)).emulation_seed

    def shuffle(self, seed: int) -> None:
        """Seed the random order of lanes and blocks."""
        self._seed(seed)


@dataclass(frozen=True)
class CudaOperators:
    """CUDA operators named as in `torch.ops.attnzoo`, the device of their tensors, and a seed for the thread order."""

    ops: Any
    device: str
    shuffle: Callable[[int], None]
