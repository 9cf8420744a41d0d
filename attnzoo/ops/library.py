"""Load the compiled library and report which kernels are available.

Operator schemas are defined in Python; the library only adds kernels. Other devices use the PyTorch fallback.
"""

import json
import os
import platform
from functools import cache
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("_C.abi3.so")
BUILD_INFO = Path(__file__).with_name("_build.json")  # written by setup.py: the CUDA targets, or why there are none
CPU_INFO = Path("/proc/cpuinfo")
_AVX2 = {"avx2", "fma", "f16c"}
SIMD_FLAGS = {"avx512": _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}, "avx2": _AVX2}  # best first
BUILD_HINT = "with a C++20 compiler, build it with `pip install --no-build-isolation .` (or -e .) in the source folder"


@cache
def load() -> str | None:
    """Load the compiled kernels once; returns None on success, else a one-line reason."""
    if not LIBRARY.exists():
        return f"the compiled library is missing; {BUILD_HINT}"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        reason = str(error).splitlines()[0]
        return f"the compiled library does not load with torch {torch.__version__} ({reason}); {BUILD_HINT}"
    return None


def release_workspace() -> None:
    """Free the workspace memory that the CPU kernels keep between calls, at most 64 MiB."""
    if torch._C._dispatch_has_kernel_for_dispatch_key("attnzoo::release_workspace", "CompositeExplicitAutograd"):
        torch.ops.attnzoo.release_workspace()


def has_kernel(device_type: str, operator: str = "ms_deform_attn") -> bool:
    """Whether the library has a kernel of `operator` for a device type ("cpu", "cuda", …)."""
    key = device_type.upper()
    return key in ("CPU", "CUDA") and torch._C._dispatch_has_kernel_for_dispatch_key(f"attnzoo::{operator}", key)


def kernels(device_type: str) -> str:
    """The kernels that run on a device type: cuda, the instruction set of those for the CPU, or reference."""
    if load() or not has_kernel(device_type):
        return "reference"
    return simd_level() if device_type == "cpu" else device_type


def simd_level() -> str:
    """The instruction set of the CPU kernels that run here: baseline, avx2 or avx512.

    The choice of `simd_level` in csrc/common/simd_level.h; "unknown" where the processor's flags cannot be read.
    """
    if requested := os.environ.get("ATTNZOO_SIMD"):
        return requested  # the library refuses a level that the machine does not support
    if platform.machine() not in ("x86_64", "AMD64"):
        return "baseline"
    if not CPU_INFO.exists():
        return "unknown"
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    supported = [level for level, needed in SIMD_FLAGS.items() if needed <= flags]
    return supported[0] if supported else "baseline"


def backends() -> dict[str, str]:
    """Backends of the operators: name → "available", or a one-line reason why it is not."""
    return {"reference": "available", "cpu": load() or "available", "cuda": _cuda_status()}


def _cuda_status() -> str:
    load_error = load()
    if load_error:
        return load_error
    info = "not recorded by the build"
    if BUILD_INFO.exists():
        info = json.loads(BUILD_INFO.read_text(encoding="utf-8"))["cuda"]
    if not has_kernel("cuda"):
        return f"not built: {info}"
    if not torch.cuda.is_available():
        return f"built ({info}), but no GPU is visible"
    return "available"
