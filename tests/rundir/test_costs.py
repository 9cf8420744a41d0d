"""costs.json, and ratios to the baseline."""

import json
from pathlib import Path

import pytest

from attnzoo.errors import UserError
from attnzoo.rundir.costs import (
    FILENAME,
    QUANTITIES,
    Costs,
    ModuleCosts,
    Quartiles,
    VariantCosts,
    read_costs,
    write_costs,
)

COUNTED = {"digest": "12345678", "size": (48, 64), "batch_size": 8, "trainable": 90}
BASE = VariantCosts(
    "base", params=100, gflops=2.0, extra_gflops=0.0, latency=(0.010, 0.020, 0.040), throughput=(0.1, 0.2, 0.4),
    training=(1.0, 2.0, 4.0), inference_memory=2**20, training_memory=8 * 2**20, **COUNTED,
)  # fmt: skip
OTHER = VariantCosts(
    "other", params=150, gflops=1.0, extra_gflops=0.5, latency=(0.020, 0.040, 0.080), throughput=(0.05, 0.2, 0.8),
    training=(), inference_memory=3 * 2**20, modules=(ModuleCosts("encoder", 150, 1.0, 0.5),), **COUNTED,
)  # fmt: skip
COSTS = Costs("base", (BASE, OTHER), ("a note",), 12.5, {"machine": {"cpu": "x"}})


def test_round_trip(tmp_path: Path) -> None:
    assert read_costs(tmp_path) is None
    assert write_costs(COSTS, tmp_path) == tmp_path / FILENAME
    assert read_costs(tmp_path) == COSTS


def test_units() -> None:
    assert COSTS.quartiles("base", "latency") == pytest.approx((15.0, 20.0, 30.0))  # ms
    assert COSTS.quartiles("base", "throughput") == pytest.approx((30.0, 40.0, 60.0))  # images per second
    assert COSTS.quartiles("base", "training") == pytest.approx((1500, 2000, 3000))  # ms
    assert COSTS.quartiles("base", "training_memory") == Quartiles(8.0, 8.0, 8.0)  # MiB
    assert COSTS.quartiles("other", "params") == Quartiles(150, 150, 150)


def test_ratios_are_taken_round_by_round() -> None:
    """The variant is twice as slow in every round, while the machine slows down by a factor of four."""
    assert COSTS.ratios("other", "latency") == Quartiles(2.0, 2.0, 2.0)
    assert COSTS.ratios("other", "throughput") == pytest.approx((0.75, 1.0, 1.5))  # of 2, 1 and 1/2
    assert COSTS.ratios("other", "gflops") == Quartiles(0.5, 0.5, 0.5)
    assert COSTS.ratios("other", "inference_memory") == Quartiles(3.0, 3.0, 3.0)
    assert {COSTS.ratios("base", quantity.key) for quantity in QUANTITIES} == {None, Quartiles(1.0, 1.0, 1.0)}


def test_what_was_not_measured_has_no_ratio() -> None:
    assert COSTS.quartiles("other", "training") is COSTS.ratios("other", "training") is None
    assert COSTS.ratios("other", "training_memory") is None
    assert COSTS.ratios("other", "extra_gflops") is None  # the baseline has none
    assert COSTS.ratios("unknown", "latency") is None


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": 0}', '{"format": 1, "baseline": "a"}', "\xff", '{"format": 1, "variants": [{}]}'],
)
def test_corrupt(tmp_path: Path, content: str) -> None:
    (tmp_path / FILENAME).write_text(content, encoding="latin1")
    with pytest.raises(UserError, match=r"costs\.json: .*; delete it, and measure again with `attnzoo cost"):
        read_costs(tmp_path)


@pytest.mark.parametrize("change", [{"size": 3}, {"latency": None}, {"modules": [1]}, {"unknown": 1}])
def test_corrupt_variant(tmp_path: Path, change: dict[str, object]) -> None:
    content = json.loads(write_costs(COSTS, tmp_path).read_text())
    content["variants"][1] |= change
    (tmp_path / FILENAME).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"costs\.json: corrupt"):
        read_costs(tmp_path)
