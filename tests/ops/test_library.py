"""Which kernels run here, as recorded with each run."""

import pytest
import torch
from support.ops import arguments
from support.simd import LEVELS

from attnzoo import ops
from attnzoo.ops import library


def accepts(level: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the library runs with this instruction set on this machine."""
    with monkeypatch.context() as patch:
        patch.setenv("ATTNZOO_SIMD", level)
        try:
            ops.ms_deform_attn(*arguments(dtype=torch.float32))
        except RuntimeError:
            return False
    return True


@pytest.mark.skipif(library.load() is not None, reason="NOT TESTED HERE: needs the compiled library")
def test_the_cpu_kernels_are_those_of_the_best_level_that_the_library_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATTNZOO_SIMD", raising=False)
    best = [level for level in LEVELS if accepts(level, monkeypatch)][-1]
    assert ops.kernels("cpu") == best
    monkeypatch.setenv("ATTNZOO_SIMD", "baseline")
    assert ops.kernels("cpu") == "baseline"


def test_without_the_library_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load", lambda: "missing")
    assert ops.kernels("cpu") == "reference"
    assert ops.kernels("meta") == "reference"
