"""The command line: what it refuses, and whole sweeps with the real trainer."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attnzoo import __main__ as attnzoo_main
from attnzoo import attention
from attnzoo import run as attnzoo_run

TINY = """
base: base/detr_scenes.yaml
name: tiny
data:
  dataset: {name: digit_scenes, image_size: 32, sizes: [6, 14], train_images: 24, val_images: 6}
  batch_size: 4
model: {dim: 16, heads: 2, ffn: 16, queries: 5}
train: {steps: 3, log_every: 1, eval_every: null}
sweep:
  zip: {model.encoder.attention.points: [1, 2], model.decoder.attention.points: [1, 2]}
  seeds: [0]
jobs: 2
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.mark.parametrize("module", [["attnzoo.run"], ["attnzoo"]])
def test_help_answers_within_a_second(module: list[str]) -> None:
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", *module, "--help"], check=True, capture_output=True)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny.yml"], "tiny.yml: no such experiment file; did you mean 'tiny.yaml'?"),
        (["tiny.yaml", "train.stpes=3"], "did you mean 'train.steps'?"),
        (["tiny.yaml", "train.steps=x"], "expected int"),
        (["tiny.yaml", "device=gpu"], "unknown device 'gpu'"),
        (["tiny.yaml", "data.dataset.name=digits"], "unknown data set 'digits'"),
        (["tiny.yaml", "data.dataset.size=3"], "has no option 'size'"),
        (["tiny.yaml", "data.augment.name=detrr"], "did you mean 'detr'?"),
        (["tiny.yaml", "model.encoder.attention.name=dens"], "did you mean 'dense'?"),
        (["tiny.yaml", "model.encoder.attention.name=dense"], "attention 'dense' has no option 'points'"),
        (["tiny.yaml", "sweep.zip={model.decoder.attention.point: [3]}"], "did you mean 'points'?"),
        (["tiny.yaml", "model.heads=3"], "heads"),
        (["tiny.yaml", "model.num_classes=3"], "the data set has 10 classes"),
        (["tiny.yaml", "plugins=[mine.py]"], "plugin"),
    ],
)
@pytest.mark.parametrize("extra", [[], ["--dry-run"]])
def test_mistakes_are_one_line_and_write_nothing(
    tiny: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, extra: list[str]
) -> None:
    before = sorted(tiny.parent.rglob("*"))
    assert attnzoo_run.main([*arguments, *extra]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(tiny.parent.rglob("*")) == before


def test_an_unwritable_output_is_one_line(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny.parent / "file").write_text("")
    assert attnzoo_run.main(["tiny.yaml", "output=file"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_dry_run_lists_and_writes_nothing(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert attnzoo_run.main(["tiny.yaml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "points=1-seed=0" in out
    assert "pending" in out
    assert "model.encoder.attention.points=2" in out
    assert not (tiny.parent / "runs").exists()


def test_list_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert attnzoo_main.main(["list"]) == 0
    out = capsys.readouterr().out
    assert f"attentions: {', '.join(attention.names())}" in out
    assert "deformable_detr_r50_two_stage" in out
    assert "detection data sets: coco, digit_scenes" in out
    assert "classification data sets: digits, folder, timm" in out
    assert attnzoo_main.main(["list", "--ops"]) == 0
    assert "reference: available" in capsys.readouterr().out


def sweep(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "attnzoo.run", "tiny.yaml", *arguments]
    return subprocess.run(command, text=True, capture_output=True, timeout=300)


@pytest.mark.slow
def test_a_sweep_from_its_file_to_its_table(tiny: Path) -> None:
    first = sweep()
    assert first.returncode == 0, first.stderr
    folder = tiny.parent / "runs" / "tiny"
    assert "points" in first.stdout
    assert "± n/a" in (folder / "comparison.md").read_text()
    assert len((folder / "comparison.csv").read_text().splitlines()) == 3
    ledger = json.loads((folder / "sweep.json").read_text())["runs"]
    assert {name: entry["attempts"] for name, entry in ledger.items()} == {"points=1-seed=0": 1, "points=2-seed=0": 1}
    metrics = (folder / "points=1-seed=0" / "metrics.jsonl").read_text()

    again = sweep()
    assert again.returncode == 0
    assert "2 of 2 runs are done already" in again.stdout
    assert (folder / "points=1-seed=0" / "metrics.jsonl").read_text() == metrics

    own = [sys.executable, "-m", "attnzoo.run", str(folder / "points=1-seed=0" / "config.yaml"), "--dry-run"]
    listed = subprocess.run(own, text=True, capture_output=True, check=True).stdout
    assert "done" in listed
    assert "points=1-seed=0" in listed


@pytest.mark.slow
def test_a_failing_run_does_not_stop_the_others(tiny: Path) -> None:
    lr = "sweep.zip={train.optimizer.lr: [1e30, 1e-3]}"  # the first diverges
    ended = sweep(lr, "jobs=1", "train.clip=null", "train.schedule.name=constant", "train.schedule.warmup=0")
    assert ended.returncode == 1
    failure = next(line for line in ended.stderr.splitlines() if line.startswith("failed: "))
    assert "lr=1e+30-seed=0" in failure
    assert "log.txt" in failure
    states = [json.loads(path.read_text())["state"] for path in sorted(tiny.parent.glob("runs/tiny/*/status.json"))]
    assert sorted(states) == ["done", "failed"]
    assert "1 of 2 runs are not finished" in (tiny.parent / "runs/tiny/comparison.md").read_text()


@pytest.mark.slow
def test_an_interrupted_sweep_saves_and_resumes(tiny: Path) -> None:
    steps = "train.steps=400"
    command = [sys.executable, "-m", "attnzoo.run", "tiny.yaml", steps, "train.log_every=10"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    statuses = [tiny.parent / f"runs/tiny/points={points}-seed=0/status.json" for points in (1, 2)]
    deadline = time.monotonic() + 120
    while not all(path.exists() and json.loads(path.read_text()).get("step") for path in statuses):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "to resume, run the same command again" in err
    assert [json.loads(path.read_text())["state"] for path in statuses] == ["interrupted"] * 2
    ended = subprocess.run(command, text=True, capture_output=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert [json.loads(path.read_text())["state"] for path in statuses] == ["done"] * 2


def results(run: Path) -> list[dict[str, float]]:
    """The rows of metrics without the one value that is a time."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "cost/ms"} for row in rows]


@pytest.mark.slow
def test_several_processes_by_launcher_and_by_torchrun(tiny: Path) -> None:
    ended = sweep("processes=2", "jobs=1", "output=launched")
    assert ended.returncode == 0, ended.stderr
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = [*torchrun, "attnzoo.run", "tiny.yaml", "processes=2"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "points" in done.stdout
    for name in ("points=1-seed=0", "points=2-seed=0"):
        assert results(tiny.parent / "runs/tiny" / name) == results(tiny.parent / "launched/tiny" / name)
    assert len((tiny.parent / "runs/tiny/comparison.csv").read_text().splitlines()) == 3
    again = subprocess.run(command, text=True, capture_output=True, timeout=300)
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_a_mistake_under_torchrun_is_told_and_writes_nothing(tiny: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = [*torchrun, "attnzoo.run", "tiny.yaml", "train.stpes=3"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300)
    assert done.returncode != 0
    assert "did you mean 'train.steps'?" in done.stderr
    assert not (tiny.parent / "runs").exists()
