"""`bench ops` on tiny cases, with peers that are right, wrong, broken and absent."""

import errno
import json
import sys
from dataclasses import replace

import pytest
import torch

from attnzoo import __main__ as attnzoo_main
from attnzoo.bench import records, roofline, tables
from attnzoo.bench.operators import benchmark as compare_ops
from attnzoo.bench.operators import deform_kv_attn
from attnzoo.bench.operators import ms_deform_attn_fused as fused
from attnzoo.bench.operators.base import DTYPES, UnavailableError
from attnzoo.bench.operators.ms_deform_attn import MS_DEFORM_ATTN, Case, inputs
from attnzoo.bench.operators.registered import OPERATIONS
from attnzoo.errors import UserError

CPU = torch.device("cpu")
TINY = Case("tiny", ((5, 6), (3, 2)), batch=2, queries=7, heads=2, head_dim=8, points=3)

TINY_MAP = deform_kv_attn.Case("tiny", 7, 9, stride=2, heads=4, groups=2, batch=2, head_dim=8)
SMALLEST = {
    "ms_deform_attn": TINY,
    "ms_deform_attn_fused": TINY,
    "deform_kv_attention": TINY_MAP,
    "deform_kv_attention_mlp": TINY_MAP,
}
BASELINES = {"deform_kv_attention_mlp": "plain"}


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch):
    monkeypatch.setitem(roofline.COPIED, "cpu", 2**20)
    monkeypatch.setitem(roofline.SIDE, "cpu", 64)


def tiny():
    """The operation with one small case, and peers that can be added to."""
    return replace(MS_DEFORM_ATTN, cases={"tiny": TINY}, brief=("tiny",), peers=dict(MS_DEFORM_ATTN.peers))


def run(operation, *peers, passes=compare_ops.PASSES, dtype=torch.float32):
    settings = compare_ops.Settings(CPU, passes, peers, seconds=0)
    return compare_ops.run([compare_ops.Measurement(operation, "tiny", "local", dtype)], settings)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_installed_agrees_in_every_dtype(operation, dtype):
    """Ours and the baseline always are; others join in where they can be imported."""
    smallest = replace(OPERATIONS[operation], cases={"tiny": SMALLEST[operation]})
    measurement = compare_ops.Measurement(smallest, "tiny", smallest.patterns[0], DTYPES[dtype])
    record = compare_ops.run([measurement], compare_ops.Settings(CPU, passes=()))
    entries = record["rows"][0]["implementations"]
    states = {name: entry["state"] for name, entry in entries.items()}
    assert {states[name] for name in states} <= {"measured", "missing", "unavailable"}, entries
    assert states["attnzoo"] == states[BASELINES.get(operation, "grid_sample")] == "measured"


def test_a_row_holds_all_samples():
    record = run(tiny(), "attnzoo", "grid_sample")
    (row,) = record["rows"]
    for entry in row["implementations"].values():
        assert entry["state"] == "measured"
        assert {label: len(samples) for label, samples in entry["seconds"].items()} == dict.fromkeys(
            compare_ops.PASSES, 5
        )
        assert set(entry["peak_bytes"]) == set(compare_ops.PASSES)
        assert set(entry["errors"]) == {"output", *(f"gradient of {name}" for name in MS_DEFORM_ATTN.tensors)}
    assert row["bound_seconds"]["forward"] < row["bound_seconds"]["forward+backward"]
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert record["machine"]["cpu"]
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert json.loads(json.dumps(record)) == record


def test_a_wrong_peer_is_not_timed_and_gets_no_ratio():
    operation = tiny()

    @operation.peer("wrong", install="never", package="attnzoo")
    def wrong(case, device):
        right = operation.peers["grid_sample"].load(case, device)
        return lambda value, locations, weights: right(value, locations, weights.roll(1, -1))

    record = run(operation, "attnzoo", "wrong", passes=("forward",))
    entry = record["rows"][0]["implementations"]["wrong"]
    assert entry["state"] == "disagrees"
    assert "off by" in entry["reason"]
    assert entry["seconds"] == {}
    assert compare_ops.faults(record) == []
    (table,) = tables.ops(record)
    line = next(row for row in table.rows if "wrong" in row)
    assert line[4].startswith("disagrees: ")
    assert line[5] == tables.NONE


def test_where_ours_is_wrong_nobody_gets_a_ratio_and_the_run_fails():
    operation = tiny()
    del operation.peers["attnzoo"]

    @operation.peer("attnzoo", install="never", package="attnzoo")
    def wrong(case, device):
        right = operation.peers["grid_sample"].load(case, device)
        return lambda value, locations, weights: 1.01 * right(value, locations, weights)

    record = run(operation, "attnzoo", "grid_sample", passes=("forward",))
    assert len(compare_ops.faults(record)) == 1
    (table,) = tables.ops(record)
    assert all(row[5] == tables.NONE for row in table.rows)
    assert any(row[3] == "grid_sample" and row[4][0].isdigit() for row in table.rows)


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (ImportError("no such thing"), "missing", "pip install it"),
        (UnavailableError("for GPUs only"), "unavailable", "for GPUs only"),
        (RuntimeError("out of\nmemory"), "failed", "RuntimeError: out of memory"),
    ],
)
def test_a_peer_that_cannot_run_says_why(error, state, said):
    operation = tiny()

    @operation.peer("absent", install="pip install it", package="absent")
    def absent(case, device):
        raise error

    record = run(operation, "attnzoo", "absent", passes=("forward",))
    entry = record["rows"][0]["implementations"]["absent"]
    assert (entry["state"], entry["reason"]) == (state, said)
    page = "\n".join(table.markdown() for table in tables.ops(record))
    assert said in page
    assert f"absent is {state}" in page or f"| absent | {state}: " in page


def test_after_the_budget_the_rest_is_named():
    measurement = compare_ops.Measurement(tiny(), "tiny", "local", torch.float32)
    record = compare_ops.run(
        [measurement] * 2, compare_ops.Settings(CPU, ("forward",), ("attnzoo",), seconds=0, budget=0)
    )
    assert record["rows"] == []
    assert record["left_out"] == ["ms_deform_attn tiny local float32"] * 2
    later = compare_ops.run([measurement], compare_ops.Settings(CPU, ("forward",), ("attnzoo",), seconds=0, budget=60))
    assert later["left_out"] == []


def test_the_fused_form_samples_where_the_plain_one_does():
    value, references, offsets, logits = fused.inputs(TINY, "local", torch.float64, CPU)
    _, locations, weights = inputs(TINY, "local", torch.float64, CPU)
    seen = {}

    def plain(value, locations, weights):
        seen.update(locations=locations, weights=weights)
        return value

    fused.unfused(plain, TINY)(value, references, offsets, logits)
    torch.testing.assert_close(seen, {"locations": locations, "weights": weights})


@pytest.mark.parametrize("pattern", MS_DEFORM_ATTN.patterns)
def test_points_keep_off_the_knots(pattern):
    _, locations, weights = inputs(TINY, pattern, torch.float32, CPU)
    pixels = locations.double() * torch.tensor([(w, h) for h, w in TINY.shapes])[:, None] - 0.5
    fraction = pixels - pixels.floor()
    assert fraction.min() > 0.015
    assert fraction.max() < 0.985
    assert weights.sum((-1, -2)).allclose(torch.ones(1))


def test_local_points_lie_around_the_pixel_that_asks():
    case = Case("grid", ((40, 50), (20, 25)))
    _, locations, _ = inputs(case, "local", torch.float32, CPU)
    own = locations[0, :2000, :, 0] * torch.tensor([50, 40])
    rows, columns = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(50) + 0.5, indexing="ij")
    offsets = own - torch.stack([columns, rows], -1).reshape(2000, 1, 1, 2)
    assert offsets.std().item() == pytest.approx(2, abs=0.1)
    assert offsets.mean().item() == pytest.approx(0, abs=0.1)


def test_the_published_sizes():
    cases = MS_DEFORM_ATTN.cases
    assert cases["encoder-800x1066-b1"].tokens == 17821
    assert cases["encoder-800x1333-b4"].tokens == 22223
    assert {case.batch for case in cases.values()} == {1, 2, 4}
    assert cases["decoder-b2"].asking == 300
    assert set(MS_DEFORM_ATTN.brief) <= set(cases)


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["--peers", "transformrs"], "unknown peer 'transformrs'; did you mean 'transformers'?"),
        (["--cases", "encoder-800x1066-b3"], "unknown case 'encoder-800x1066-b3'; did you mean 'encoder-800x1066-b"),
        (["--operations", "ms_deform"], "did you mean 'ms_deform_attn'?"),
        (["--dtypes", "float31"], "unknown dtype 'float31'; did you mean 'float32'?"),
        (["--patterns", "locale"], "unknown pattern 'locale'; did you mean 'local'?"),
        (["--passes", "forwards"], "unknown pass 'forwards'; did you mean 'forward'?"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--threads", "0"], "must be at least 1"),
        (["--json", "/dev/null/ops.json"], "--json /dev/null/ops.json: "),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, nearest):
    assert attnzoo_main.main(["bench", "ops", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert nearest in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ops", "--seconds", "-1"], "--seconds -1: must be 0 or more"),
        (["ops", "--seconds", "nan"], "--seconds nan: must be 0 or more"),
        (["models", "--seconds", "inf"], "--seconds inf: must be 0 or more, and finite"),
        (["ops", "--budget", "-1"], "--budget -1: must be more than 0"),
        (["ops", "--budget", "0"], "--budget 0: must be more than 0"),
        (["ops", "--budget", "nan"], "--budget nan: must be more than 0"),
        (["scaling", "--limit", "0"], "--limit 0: must be more than 0"),
        (["scaling", "--limit", "nan"], "--limit nan: must be more than 0"),
        (["scaling", "--tokens", "0"], "--tokens 0: the smallest map has 1024"),
        (["scaling", "--tokens", "-4096"], "--tokens -4096: the smallest map has 1024"),
        (["scaling", "--threads", "-2"], "--threads -2: must be at least 1"),
        (["models", "--forward", "1x0x64"], "--forward 1x0x64: every number must be at least 1"),
        (["models", "--training", "0x64x64"], "--training 0x64x64: every number must be at least 1"),
    ],
)
def test_numbers_that_make_no_sense_are_one_line_and_write_nothing(capsys, tmp_path, arguments, said):
    assert attnzoo_main.main(["bench", *arguments, "--json", str(tmp_path / "new" / "raw.json")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert attnzoo_main.main(["bench", "ops", "--device", "cuda"]) == 2
    assert "sees no GPU" in capsys.readouterr().err


ENCODERS = [f"encoder-{size}-b{batch}" for size in ("512x512", "800x1066", "800x1333") for batch in (1, 2, 4)]


@pytest.mark.parametrize("operation", ["ms_deform_attn", "ms_deform_attn_fused"])
def test_every_size_batch_dtype_and_pass_can_be_asked_for(capsys, operation):
    cases = [*(f"decoder-b{batch}" for batch in (1, 2, 4)), *ENCODERS]
    wanted = ["--operations", operation, "--patterns", "local", "--cases", *cases, "--dtypes", "all"]
    assert attnzoo_main.main(["bench", "ops", "--dry-run", *wanted]) == 0
    *planned, total = capsys.readouterr().out.splitlines()
    assert planned == [f"{operation} {case} local {dtype}" for case in cases for dtype in DTYPES]
    assert list(DTYPES) == ["float32", "float64", "float16", "bfloat16"]
    assert total.startswith("48 measurements of forward and forward+backward")
    for case in cases:
        made = OPERATIONS[operation].cases[case]
        assert case.endswith(f"-b{made.batch}")
        assert made.asking == (300 if case.startswith("decoder") else made.tokens)


def test_what_is_measured_unless_other_cases_are_asked_for():
    few = {"decoder-b1", "decoder-b4", "encoder-512x512-b1", "encoder-800x1066-b1"}
    assert {made.case for made in compare_ops.plan(CPU, ["ms_deform_attn"])} == few
    on_gpu = {made.case for made in compare_ops.plan(torch.device("cuda"), ["ms_deform_attn", "ms_deform_attn_fused"])}
    assert on_gpu == set(MS_DEFORM_ATTN.cases) - {"encoder-512x512-b2", "encoder-512x512-b4"}
    assert len(on_gpu) == 10


def test_list_and_dry_run_measure_nothing(capsys, monkeypatch):
    monkeypatch.setattr(compare_ops, "run", None)
    assert attnzoo_main.main(["bench", "ops", "--list"]) == 0
    listed = capsys.readouterr().out
    assert "case encoder-800x1333-b4: B 4, Q 22,223" in listed
    assert "case encoder-512x512-b4: B 4, Q 5,440" in listed
    assert listed.startswith("dtypes float32, float64, float16, bfloat16; passes forward, forward+backward\n")
    plain = [
        line.split() for line in listed.split("ms_deform_attn_fused:")[0].splitlines() if line.startswith("  case")
    ]
    assert {name.rstrip(":") for _, name, *_, last in plain if last != "for)"} == set(MS_DEFORM_ATTN.brief)
    assert "peer attnzoo (attnzoo " in listed
    assert "deformops-triton (deformops " in listed
    assert attnzoo_main.main(["bench", "ops", "--dry-run", "--operations", "ms_deform_attn", "--dtypes", "all"]) == 0
    planned = capsys.readouterr().out.splitlines()
    assert planned[0] == "ms_deform_attn decoder-b1 local float32"
    assert len(planned) == 4 * 2 * 4 + 1


def test_from_the_command_line_to_the_page(capsys, tmp_path):
    raw, page = tmp_path / "ops.json", tmp_path / "operators.md"
    command = ["bench", "ops", "--cases", "decoder-b1", "--patterns", "local", "--passes", "forward", "--seconds", "0"]
    assert attnzoo_main.main([*command, "--peers", "grid_sample", "--json", str(raw)]) == 0  # ours beside it
    assert "grid_sample" in capsys.readouterr().out
    assert attnzoo_main.main(["bench", "tables", str(raw), "--title", "Operators", "--out", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("# Operators\n")
    assert "[ops.json](ops.json)" in text
    assert "| grid_sample |" in text
    ratio = tables.ratio(*(json.loads(raw.read_text())["rows"][0]["implementations"][name]["seconds"]["forward"]
                           for name in ("grid_sample", "attnzoo")))  # fmt: skip
    assert ratio in text


def test_a_page_of_something_else_is_refused(tmp_path, capsys):
    other = tmp_path / "other.json"
    for text, said in (("{}", "no record of a benchmark"), ('{"format": 1, "kind": "ops"}', "lacks time, command")):
        other.write_text(text)
        assert attnzoo_main.main(["bench", "tables", str(other)]) == 2
        assert said in capsys.readouterr().err
    assert attnzoo_main.main(["bench", "tables", str(other), "--out", str(tmp_path)]) == 2
    assert "cannot be written (it is a folder)" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED HERE: needs Linux's /proc")
def test_a_file_that_nobody_can_write_is_named_before_anything_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(compare_ops, "run", None)
    assert attnzoo_main.main(["bench", "ops", "--json", "/proc/x.json"]) == 2
    assert "--json /proc/x.json: cannot be written (" in capsys.readouterr().err
    assert attnzoo_main.main(["bench", "ops", "--json", "x" * 300]) == 2
    assert "xxx: cannot be written (" in capsys.readouterr().err


def test_a_disk_that_fills_up_is_one_line(capsys, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(records, "write", full)
    command = ["bench", "ops", "--cases", "decoder-b1", "--patterns", "local", "--passes", "forward", "--seconds", "0"]
    assert attnzoo_main.main([*command, "--peers", "attnzoo", "--json", str(tmp_path / "ops.json")]) == 2
    assert "ops.json: cannot be written (No space left on device)" in capsys.readouterr().err


def test_a_peer_of_another_operator_is_unknown(capsys):
    command = ["bench", "ops", "--operations", "deform_kv_attention", "--peers", "transformers", "--dry-run"]
    assert attnzoo_main.main(command) == 2
    assert "unknown peer 'transformers'" in capsys.readouterr().err


def test_an_unknown_name_is_a_user_error():
    with pytest.raises(UserError, match="unknown case"):
        compare_ops.plan(CPU, cases=["tiny"])
