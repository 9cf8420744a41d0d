"""Instruction sets of the CPU kernels."""

import pytest
import torch

from attnzoo import ops
from support.ops import arguments

LEVELS = ["baseline", "avx2", "avx512"]


def force(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Select an instruction set; skip the test if this machine does not support it."""
    monkeypatch.setenv("ATTNZOO_SIMD", level)
    try:
        ops.ms_deform_attn(*arguments(dtype=torch.float32))
    except RuntimeError as error:
        if "not supported by this machine" not in str(error):
            raise
        pytest.skip(f"this machine does not support {level}")
