"""`bench export` on a tiny detector: every form is compared with eager mode before it is timed."""

import pytest

from attnzoo.bench import tables
from attnzoo.bench.models import exported

TINY = {
    "dim": 32,
    "heads": 4,
    "ffn": 48,
    "queries": 6,
    "backbone": {"name": "resnet18", "options": {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}},
    "encoder": {"layers": 0},
    "decoder": {"layers": 1},
}


@pytest.mark.slow
@pytest.mark.long
def test_every_form_is_compared_and_timed() -> None:
    name = "deformable_detr_r50_single_scale"
    record = exported.run([name], seconds=0, shape=(1, 96, 128), overrides=TINY)
    (row,) = record["rows"]
    assert row["workload"] == "forward, 1 x 96x128"
    assert row["reason"] is None
    assert 0 < row["error"] < 1e-4
    assert {form: len(entry["seconds"]) for form, entry in row["implementations"].items()} == {
        "attnzoo": 5, "torch.export": 5, "onnxruntime, grid_sample": 5, "onnxruntime, gather": 5,
    }  # fmt: skip
    assert exported.failures(record) == []
    (table,) = tables.tables(record)
    assert [line[2] for line in table.rows] == list(row["implementations"])


@pytest.mark.slow
@pytest.mark.long
def test_images_that_a_program_refuses_are_a_failure_of_one_line() -> None:
    record = exported.run(["dat_pico"], seconds=0, shape=(1, 64, 64))
    (failure,) = exported.failures(record)
    assert "torch.export: AssertionError: Guard failed: " in failure
    assert "\n" not in failure
