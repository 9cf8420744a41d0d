"""`bench ops` on tiny cases, with implementations that are correct, wrong, broken or missing."""

import json
from dataclasses import replace

import pytest
import torch

from attnzoo.bench import roofline, tables
from attnzoo.bench.operators import benchmark, deform_kv_attn, windows
from attnzoo.bench.operators.base import DTYPES, UnavailableError
from attnzoo.bench.operators.benchmark import OPERATORS
from attnzoo.bench.operators.ms_deform_attn import MS_DEFORM_ATTN, Case
from attnzoo.errors import UserError

CPU = torch.device("cpu")
TINY = Case("tiny", ((5, 6), (3, 2)), batch=2, queries=7, heads=2, head_dim=8, points=3)
TINY_MAP = deform_kv_attn.Case("tiny", 7, 9, stride=2, heads=4, groups=2, batch=2, head_dim=8)
TINY_CASES = {
    "ms_deform_attn": TINY,
    "ms_deform_attn_fused": TINY,
    "deform_kv_attn": TINY_MAP,
    "deform_kv_attn_mlp": TINY_MAP,
    "decoder_values": TINY,
    "window_attn": windows.Case("tiny", 9, 16, heads=2, batch=2, shift=3, head_dim=8),
    "neighborhood_attn": windows.Case("tiny", 9, 16, heads=2, batch=2, head_dim=8),
}
BASELINES = {"deform_kv_attn_mlp": "plain", "window_attn": "matmul", "neighborhood_attn": "unfold-sdpa"}


@pytest.fixture(autouse=True)
def small_roofline(monkeypatch):
    monkeypatch.setitem(roofline.COPY_BYTES, "cpu", 2**20)
    monkeypatch.setitem(roofline.MATMUL_SIZE, "cpu", 64)


def tiny_operator():
    """The operator with one small case, and implementations that can be added to."""
    implementations = dict(MS_DEFORM_ATTN.implementations)
    return replace(MS_DEFORM_ATTN, cases={"tiny": TINY}, cpu_cases=("tiny",), implementations=implementations)


def run(operator, *implementations, passes=benchmark.PASSES, dtype=torch.float32):
    settings = benchmark.Settings(CPU, passes, implementations, seconds=0)
    return benchmark.run([benchmark.Measurement(operator, "tiny", "local", dtype)], settings)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_installed_implementations_are_correct_in_every_dtype(name, dtype):
    """Ours and the baseline always run; others if they can be imported."""
    operator = replace(OPERATORS[name], cases={"tiny": TINY_CASES[name]})
    measurement = benchmark.Measurement(operator, "tiny", operator.patterns[0], DTYPES[dtype])
    record = benchmark.run([measurement], benchmark.Settings(CPU, passes=()))
    entries = record["rows"][0]["implementations"]
    states = {name: entry["state"] for name, entry in entries.items()}
    assert set(states.values()) <= {"measured", "missing", "unavailable"}, entries
    assert states["attnzoo"] == states[BASELINES.get(name, "grid_sample")] == "measured"


def test_row_holds_all_samples():
    record = run(tiny_operator(), "attnzoo", "grid_sample")
    (row,) = record["rows"]
    for entry in row["implementations"].values():
        assert entry["state"] == "measured"
        assert {name: len(samples) for name, samples in entry["seconds"].items()} == dict.fromkeys(benchmark.PASSES, 5)
        assert set(entry["peak_bytes"]) == set(benchmark.PASSES)
        assert set(entry["errors"]) == {"output", *(f"gradient of {name}" for name in MS_DEFORM_ATTN.tensors)}
    assert row["roofline_seconds"]["forward"] < row["roofline_seconds"]["forward+backward"]
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert record["machine"]["cpu"]
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert json.loads(json.dumps(record)) == record


def test_wrong_implementation_is_not_timed_and_gets_no_ratio():
    operator = tiny_operator()

    @operator.implementation("wrong", install="never", package="attnzoo")
    def wrong(case, device):
        correct = operator.implementations["grid_sample"].factory(case, device)
        return lambda value, locations, weights: correct(value, locations, weights.roll(1, -1))

    record = run(operator, "attnzoo", "wrong", passes=("forward",))
    entry = record["rows"][0]["implementations"]["wrong"]
    assert entry["state"] == "mismatch"
    assert "relative error" in entry["reason"]
    assert entry["seconds"] == {}
    assert benchmark.failures(record) == []
    (table,) = tables.ops_tables(record)
    line = next(row for row in table.rows if "wrong" in row)
    assert line[4].startswith("mismatch: ")
    assert line[5] == tables.DASH


def test_wrong_attnzoo_result_gives_no_ratios_and_fails():
    operator = tiny_operator()
    del operator.implementations["attnzoo"]

    @operator.implementation("attnzoo", install="never", package="attnzoo")
    def wrong(case, device):
        correct = operator.implementations["grid_sample"].factory(case, device)
        return lambda value, locations, weights: 1.01 * correct(value, locations, weights)

    record = run(operator, "attnzoo", "grid_sample", passes=("forward",))
    assert len(benchmark.failures(record)) == 1
    (table,) = tables.ops_tables(record)
    assert all(row[5] == tables.DASH for row in table.rows)
    assert any(row[3] == "grid_sample" and row[4][0].isdigit() for row in table.rows)


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (ImportError("no such thing"), "missing", "pip install it"),
        (UnavailableError("for GPUs only"), "unavailable", "for GPUs only"),
        (RuntimeError("out of\nmemory"), "failed", "RuntimeError: out of memory"),
    ],
)
def test_implementation_that_cannot_run_is_listed_with_the_reason(error, state, reason):
    operator = tiny_operator()

    @operator.implementation("broken", install="pip install it", package="broken")
    def broken(case, device):
        raise error

    record = run(operator, "attnzoo", "broken", passes=("forward",))
    entry = record["rows"][0]["implementations"]["broken"]
    assert (entry["state"], entry["reason"]) == (state, reason)
    page = "\n".join(table.markdown() for table in tables.ops_tables(record))
    assert reason in page
    assert f"broken is {state}" in page or f"| broken | {state}: " in page


def test_measurements_after_the_budget_are_listed_as_skipped():
    measurement = benchmark.Measurement(tiny_operator(), "tiny", "local", torch.float32)
    record = benchmark.run([measurement] * 2, benchmark.Settings(CPU, ("forward",), ("attnzoo",), seconds=0, budget=0))
    assert record["rows"] == []
    assert record["skipped"] == ["ms_deform_attn tiny local float32"] * 2
    later = benchmark.run([measurement], benchmark.Settings(CPU, ("forward",), ("attnzoo",), seconds=0, budget=60))
    assert later["skipped"] == []


def test_default_cases():
    few = {"decoder-b1", "decoder-b4", "encoder-512x512-b1", "encoder-800x1066-b1"}
    assert {measurement.case for measurement in benchmark.plan(CPU, ["ms_deform_attn"])} == few
    on_gpu = benchmark.plan(torch.device("cuda"), ["ms_deform_attn", "ms_deform_attn_fused"])
    cases = {measurement.case for measurement in on_gpu}
    assert cases == set(MS_DEFORM_ATTN.cases) - {"encoder-512x512-b2", "encoder-512x512-b4"}
    assert len(cases) == 10


def test_unknown_name_is_a_user_error():
    with pytest.raises(UserError, match="unknown case"):
        benchmark.plan(CPU, cases=["tiny"])
