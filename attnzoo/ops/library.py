"""The compiled library: loading it, and saying what it holds.

Schemas are declared in Python, so that the operators exist without the library too: it only adds kernels for the
devices it was built for, and the plain PyTorch reference stands in on all others.
"""

import json
from functools import cache
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("_C.abi3.so")
BUILD_RECORD = Path(__file__).with_name("_build.json")  # written by setup.py: why CUDA was not built, or its targets
HOW_TO_BUILD = "build it with `pip install --no-build-isolation .` (or -e .) in the source folder"


@cache
def load() -> str | None:
    """Load the compiled kernels once; returns None, or in one line why there are none."""
    if not LIBRARY.exists():
        return f"the compiled library is missing; {HOW_TO_BUILD}"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        reason = str(error).splitlines()[0]
        return f"the compiled library does not load with torch {torch.__version__} ({reason}); {HOW_TO_BUILD}"
    return None


def compiled_for(device_type: str, operator: str = "ms_deform_attn") -> bool:
    """Whether the library holds kernels of an operator for "cpu", "cuda", …"""
    key = device_type.upper()
    return key in ("CPU", "CUDA") and torch._C._dispatch_has_kernel_for_dispatch_key(f"attnzoo::{operator}", key)


def backends() -> dict[str, str]:
    """What can run the operators: backend → "available", or in one line why it is not."""
    return {"reference": "available", "cpu": _cpu(), "cuda": _cuda()}


def _cpu() -> str:
    return load() or "available"


def _cuda() -> str:
    missing = load()
    if missing:
        return missing
    record = (
        json.loads(BUILD_RECORD.read_text(encoding="utf-8"))["cuda"]
        if BUILD_RECORD.exists()
        else "not recorded by the build"
    )
    if not compiled_for("cuda"):
        return f"not built: {record}"
    if not torch.cuda.is_available():
        return f"built ({record}), but no GPU is visible"
    return "available"
