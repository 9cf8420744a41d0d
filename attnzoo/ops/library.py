"""Load the compiled library and report which kernels are available.

Operator schemas are defined in Python; the library only adds kernels. Other devices use the PyTorch fallback.
"""

import json
from functools import cache
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("_C.abi3.so")
BUILD_INFO = Path(__file__).with_name("_build.json")  # written by setup.py: the CUDA targets, or why there are none
BUILD_HINT = "build it with `pip install --no-build-isolation .` (or -e .) in the source folder"


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


def has_kernel(device_type: str, operator: str = "ms_deform_attn") -> bool:
    """Whether the library has a kernel of `operator` for a device type ("cpu", "cuda", …)."""
    key = device_type.upper()
    return key in ("CPU", "CUDA") and torch._C._dispatch_has_kernel_for_dispatch_key(f"attnzoo::{operator}", key)


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
