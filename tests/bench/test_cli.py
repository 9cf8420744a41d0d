"""The command line of the benchmarks: what it prints, writes and rejects."""

import errno
import json
import sys

import pytest
import torch

from attnzoo import __main__ as attnzoo_main
from attnzoo.bench import records, roofline, scaling, tables
from attnzoo.bench.models import benchmark as models_benchmark
from attnzoo.bench.operators import benchmark as ops_benchmark
from attnzoo.bench.operators.base import DTYPES
from attnzoo.bench.operators.ms_deform_attn import MS_DEFORM_ATTN

QUICK = ["--cases", "decoder-b1", "--patterns", "local", "--passes", "forward", "--seconds", "0"]
ENCODERS = [f"encoder-{size}-b{batch}" for size in ("512x512", "800x1066", "800x1333") for batch in (1, 2, 4)]


@pytest.fixture(autouse=True)
def small_roofline(monkeypatch):
    monkeypatch.setitem(roofline.COPY_BYTES, "cpu", 2**20)
    monkeypatch.setitem(roofline.MATMUL_SIZE, "cpu", 64)


def bench(*arguments):
    return attnzoo_main.main(["bench", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["ops", "--implementations", "transformrs"],
            "unknown implementation 'transformrs'; did you mean 'transformers'?",
        ),
        (["ops", "--cases", "encoder-800x1066-b3"], "unknown case 'encoder-800x1066-b3'; did you mean 'encoder-800x10"),
        (["ops", "--operators", "ms_deform"], "did you mean 'ms_deform_attn'?"),
        (["ops", "--dtypes", "float31"], "unknown dtype 'float31'; did you mean 'float32'?"),
        (["ops", "--patterns", "locale"], "unknown pattern 'locale'; did you mean 'local'?"),
        (["ops", "--passes", "forwards"], "unknown pass 'forwards'; did you mean 'forward'?"),
        (["ops", "--device", "gpu"], "unknown device 'gpu'"),
        (["ops", "--threads", "0"], "must be at least 1"),
        (["ops", "--json", "/dev/null/ops.json"], "--json /dev/null/ops.json: "),
        (["models", "--models", "detr_r5"], "unknown model 'detr_r5'; did you mean 'detr_r50'?"),
        (["export", "--models", "detr_r5"], "unknown model 'detr_r5'; did you mean 'detr_r50'?"),
        (["scaling", "--attentions", "dens"], "unknown attention 'dens'; did you mean 'dense'?"),
    ],
)
def test_invalid_arguments_give_a_one_line_error(capsys, arguments, message):
    assert bench(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ops", "--seconds", "-1"], "--seconds -1: must be 0 or more"),
        (["ops", "--seconds", "nan"], "--seconds nan: must be 0 or more"),
        (["models", "--seconds", "inf"], "--seconds inf: must be 0 or more, and finite"),
        (["ops", "--budget", "-1"], "--budget -1: must be more than 0"),
        (["ops", "--budget", "0"], "--budget 0: must be more than 0"),
        (["ops", "--budget", "nan"], "--budget nan: must be more than 0"),
        (["scaling", "--roles", "decode"], "unknown role 'decode'; did you mean 'decoder'?"),
        (
            ["scaling", "--attentions", "conv", "--roles", "decoder"],
            "--roles decoder: conv: no attention for this role",
        ),
        (["scaling", "--limit", "0"], "--limit 0: must be more than 0"),
        (["scaling", "--limit", "nan"], "--limit nan: must be more than 0"),
        (["scaling", "--tokens", "0"], "--tokens 0: must be at least 1024"),
        (["scaling", "--tokens", "-4096"], "--tokens -4096: must be at least 1024"),
        (["scaling", "--threads", "-2"], "--threads -2: must be at least 1"),
        (["models", "--forward", "1x0x64"], "--forward 1x0x64: every number must be at least 1"),
        (["models", "--training", "0x64x64"], "--training 0x64x64: every number must be at least 1"),
        (["models", "--forward", "1x99999x99999"], "--forward 1x99999x99999: expected at most 268,435,456 pixels"),
    ],
)
def test_out_of_range_numbers_give_a_one_line_error_and_write_nothing(capsys, tmp_path, arguments, message):
    assert bench(*arguments, "--json", tmp_path / "new" / "raw.json") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_cuda_without_a_gpu(capsys):
    assert bench("ops", "--device", "cuda") == 2
    assert "sees no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ms_deform_attn", "ms_deform_attn_fused"])
def test_every_size_batch_dtype_and_pass_can_be_requested(capsys, name):
    cases = [*(f"decoder-b{batch}" for batch in (1, 2, 4)), *ENCODERS]
    selection = ["--operators", name, "--patterns", "local", "--cases", *cases, "--dtypes", "all"]
    assert bench("ops", "--dry-run", *selection) == 0
    *planned, total = capsys.readouterr().out.splitlines()
    assert planned == [f"{name} {case} local {dtype}" for case in cases for dtype in DTYPES]
    assert list(DTYPES) == ["float32", "float64", "float16", "bfloat16"]
    assert total.startswith("48 measurements of forward and forward+backward")
    for case_name in cases:
        case = ops_benchmark.OPERATORS[name].cases[case_name]
        assert case_name.endswith(f"-b{case.batch}")
        assert case.num_queries == (300 if case_name.startswith("decoder") else case.tokens)


def test_list_and_dry_run_measure_nothing(capsys, monkeypatch):
    monkeypatch.setattr(ops_benchmark, "run", None)
    assert bench("ops", "--list") == 0
    listed = capsys.readouterr().out
    assert "case encoder-800x1333-b4: B 4, Q 22,223" in listed
    assert "case encoder-512x512-b4: B 4, Q 5,440" in listed
    assert listed.startswith("dtypes float32, float64, float16, bfloat16; passes forward, forward+backward\n")
    unfused = listed.split("ms_deform_attn_fused:")[0].splitlines()
    cases = [line.split() for line in unfused if line.startswith("  case")]
    assert {name.rstrip(":") for _, name, *_, last in cases if last != "(opt-in)"} == set(MS_DEFORM_ATTN.cpu_cases)
    assert "implementation attnzoo (attnzoo " in listed
    assert "deformops-triton (deformops " in listed
    assert bench("ops", "--dry-run", "--operators", "ms_deform_attn", "--dtypes", "all") == 0
    planned = capsys.readouterr().out.splitlines()
    assert planned[0] == "ms_deform_attn decoder-b1 local float32"
    assert len(planned) == 4 * 2 * 4 + 1


def test_implementation_of_another_operator_is_unknown(capsys):
    selection = ["--operators", "deform_kv_attn", "--implementations", "transformers"]
    assert bench("ops", *selection, "--dry-run") == 2
    assert "unknown implementation 'transformers'" in capsys.readouterr().err


def test_ops_benchmark_and_tables(capsys, tmp_path):
    raw, page = tmp_path / "ops.json", tmp_path / "operators.md"
    assert bench("ops", *QUICK, "--implementations", "grid_sample", "--json", raw) == 0  # ours is included
    assert "grid_sample" in capsys.readouterr().out
    assert bench("tables", raw, "--title", "Operators", "--out", page) == 0
    text = page.read_text()
    assert text.startswith("# Operators\n")
    assert "[ops.json](ops.json)" in text
    assert "| grid_sample |" in text
    entries = json.loads(raw.read_text())["rows"][0]["implementations"]
    assert tables.format_ratio(*(entries[name]["seconds"]["forward"] for name in ("grid_sample", "attnzoo"))) in text


def test_models_benchmark(capsys, tmp_path):
    pytest.importorskip("transformers")
    raw = tmp_path / "models.json"
    sizes = ["--tiny", "--forward", "1x32x32", "--training", "1x32x32", "--seconds", "0"]
    assert bench("models", "--models", "detr_r50", *sizes, "--json", raw) == 0
    assert f"{models_benchmark.TRAINING}, 1 x 32x32" in capsys.readouterr().out
    assert len(json.loads(raw.read_text())["rows"]) == 2


def test_scaling_with_a_plot(tmp_path, capsys, monkeypatch):
    for axis, values in {"TOKENS": (64, 128), "QUERIES": (4, 8), "POINTS": (1, 2), "NUM_LEVELS": (1, 2)}.items():
        monkeypatch.setattr(scaling, axis, values)
    raw, plot = tmp_path / "scaling.json", tmp_path / "scaling.png"
    assert bench("scaling", "--attentions", "ms_deform", "--seconds", "0", "--json", raw, "--plot", plot) == 0
    out = capsys.readouterr().out
    assert "encoder, against points" in out
    assert "decoder, against queries" in out
    assert "fitted exponents" in out
    record = json.loads(raw.read_text())
    assert all(len(row["seconds"]) == scaling.MIN_ROUNDS for row in record["rows"])
    assert plot.read_bytes()[1:4] == b"PNG"


def test_tables_reject_other_files(tmp_path, capsys):
    other = tmp_path / "other.json"
    header = f'{{"format": {records.FORMAT_VERSION}, "kind": "ops"}}'
    for text, message in (("{}", "not a benchmark record"), (header, "without time, command")):
        other.write_text(text)
        assert bench("tables", other) == 2
        assert message in capsys.readouterr().err
    assert bench("tables", other, "--out", tmp_path) == 2
    assert "is a folder; name a file" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED HERE: needs Linux's /proc")
def test_unwritable_file_is_rejected_before_any_measurement(capsys, monkeypatch):
    monkeypatch.setattr(ops_benchmark, "run", None)
    assert bench("ops", "--json", "/proc/x.json") == 2
    assert "--json /proc/x.json: cannot be written (" in capsys.readouterr().err
    assert bench("ops", "--json", "x" * 300) == 2
    assert "xxx: File name too long" in capsys.readouterr().err


def test_unwritable_plot_is_rejected_before_any_measurement(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(scaling, "run", None)
    for name, message in (("plot.txt", "expected a name ending in .png"), ("file/plot.png", "--plot ")):
        (tmp_path / "file").touch()
        assert bench("scaling", "--plot", tmp_path / name) == 2
        assert message in capsys.readouterr().err


def test_invalid_arguments_create_no_folder(tmp_path):
    folder = tmp_path / "new"
    files = ["--json", folder / "scaling.json", "--plot", folder / "scaling.svg"]
    assert bench("scaling", "--attentions", "dens", *files) == 2
    assert not folder.exists()


def test_full_disk_gives_a_one_line_error(capsys, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(records, "write", full)
    assert bench("ops", *QUICK, "--implementations", "attnzoo", "--json", tmp_path / "ops.json") == 2
    assert "ops.json: cannot be written (No space left on device)" in capsys.readouterr().err
