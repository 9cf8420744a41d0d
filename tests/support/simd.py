"""The instruction sets that CPU kernels are compiled for, and how tests choose one."""

import pytest
import torch

from attnzoo import ops
from support.ops import arguments

LEVELS = ["baseline", "avx2", "avx512"]


def force(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `level` run from now on; skip the test where this machine does not have it."""
    monkeypatch.setenv("ATTNZOO_SIMD", level)
    try:
        ops.ms_deform_attn(*arguments(dtype=torch.float32))
    except RuntimeError as error:
        if "not supported by this machine" not in str(error):
            raise
        pytest.skip(f"this machine has no {level}: its kernels are not tested")
