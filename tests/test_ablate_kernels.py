"""`tools/ablate_kernels.py`: what it takes out is there, and what it measures exists."""

import importlib.util
import sys
from pathlib import Path

import pytest

from attnzoo.bench.operators.registered import OPERATIONS

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("ablate_kernels", ROOT / "tools" / "ablate_kernels.py")
ablate_kernels = importlib.util.module_from_spec(spec)
sys.modules["ablate_kernels"] = ablate_kernels
spec.loader.exec_module(ablate_kernels)


@pytest.mark.parametrize("part", ablate_kernels.PARTS, ids=lambda part: part.name)
def test_every_part_stands_once_in_its_file(part):
    assert (ROOT / "csrc" / part.file).read_text().count(part.old) == 1
    assert part.new != part.old


@pytest.mark.parametrize("call", {call for part in ablate_kernels.PARTS for call in part.calls})
def test_every_call_is_a_case_of_the_benchmark(call):
    name, case, pattern = call
    assert case in OPERATIONS[name].cases
    assert pattern in OPERATIONS[name].patterns


def test_a_worker_times_what_it_is_told():
    worker = ablate_kernels.Variant(ROOT, 1, "baseline")
    try:
        assert 0 < worker.time(("ms_deform_attn", "decoder-b1", "local", "forward")) < 60
        assert 0 < worker.time(("ms_deform_attn", "decoder-b1", "local", "forward+backward")) < 60
    finally:
        worker.stop()
    assert worker.process.returncode == 0
