"""`tools/ablate_kernels.py`: its patches apply, and its cases exist."""

import importlib.util
import sys
from pathlib import Path

import pytest

from attnzoo.bench.operators.benchmark import OPERATORS

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("ablate_kernels", ROOT / "tools" / "ablate_kernels.py")
ablate_kernels = importlib.util.module_from_spec(spec)
sys.modules["ablate_kernels"] = ablate_kernels
spec.loader.exec_module(ablate_kernels)


@pytest.mark.parametrize("optimization", ablate_kernels.OPTIMIZATIONS, ids=lambda optimization: optimization.name)
def test_every_patch_applies_once(optimization):
    assert (ROOT / "csrc" / optimization.file).read_text().count(optimization.old) == 1
    assert optimization.new != optimization.old


@pytest.mark.parametrize("case", {case for each in ablate_kernels.OPTIMIZATIONS for case in each.cases})
def test_every_case_is_one_of_the_benchmark(case):
    name, case, pattern = case
    assert case in OPERATORS[name].cases
    assert pattern in OPERATORS[name].patterns


def test_calls_are_timed():
    with ablate_kernels.running({"full": (ROOT, "baseline")}, threads=1) as workers:
        rows = ablate_kernels.compare(workers, [("ms_deform_attn", "decoder-b1", "local")], rounds=2)
    assert [row["call"][-1] for row in rows] == ["forward", "forward+backward"]
    for row in rows:
        assert list(row["seconds"]) == ["full"]
        assert all(0 < seconds < 60 for seconds in row["seconds"]["full"])
