"""Whole sweeps on the command line, with the real trainer: resumed, interrupted, failing, killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.sweep import TINY, results, sweep
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData


def _assert_hparams(folder: Path, columns: set[str], runs: int) -> None:
    """Every one of the folder's runs has a value for every column."""

    def content(path: Path) -> HParamsPluginData:
        events = EventAccumulator(str(path)).Reload()
        (found,) = [content for tag, content in events.PluginTagToContent("hparams").items() if "end" not in tag]
        return HParamsPluginData.FromString(found)

    assert {info.name for info in content(folder).experiment.hparam_infos} == columns
    sessions = [content(path.parent).session_start_info for path in folder.glob("*/*.hparams")]
    assert len(sessions) == runs
    assert all(set(session.hparams) == columns for session in sessions)


@pytest.mark.slow
def test_sweep_end_to_end(tiny: Path) -> None:
    first = sweep("sweep.costs=true")
    assert first.returncode == 0, first.stderr
    folder = tiny.parent / "runs" / "tiny"
    assert "points" in first.stdout
    assert (folder / "costs.json").exists()
    assert "± n/a" in (folder / "comparison.md").read_text()
    assert len((folder / "comparison.csv").read_text().splitlines()) == 3
    ledger = json.loads((folder / "sweep.json").read_text())["runs"]
    assert {name: entry["attempts"] for name, entry in ledger.items()} == {"points=1-seed=0": 1, "points=2-seed=0": 1}
    metrics = (folder / "points=1-seed=0" / "metrics.jsonl").read_text()

    again = sweep()
    assert again.returncode == 0
    assert "2 of 2 runs are already done" in again.stdout
    assert (folder / "points=1-seed=0" / "metrics.jsonl").read_text() == metrics

    (folder / "older").mkdir()
    (folder / "older" / "config.yaml").write_text("no: key of today\n")
    other = sweep("sweep={grid: {train.optimizer.lr: [1e-3]}}")  # two more runs in the same folder
    assert other.returncode == 0, other.stderr
    assert len((folder / "comparison.csv").read_text().splitlines()) == 3
    _assert_hparams(folder, {"points", "lr"}, runs=4)

    own = [sys.executable, "-m", "attnzoo.run", str(folder / "points=1-seed=0" / "config.yaml"), "--dry-run"]
    listed = subprocess.run(own, text=True, capture_output=True, check=True).stdout
    assert "done" in listed
    assert "points=1-seed=0" in listed


@pytest.mark.slow
def test_sweep_of_variants_end_to_end(tiny: Path) -> None:
    key = "model.encoder.attention"
    others = f"points=1: {{{key}.points: 1}}, deform: {{{key}: {{name: deform, level: 0}}}}"
    variants = f"{{dense: {{{key}: {{name: dense}}}}, {others}}}"
    tiny.write_text(re.sub(r"zip: .*", f"variants: {variants}", TINY).replace("seeds: [0]", "seeds: [0, 1]"))
    ended = sweep()
    assert ended.returncode == 0, ended.stderr
    folder = tiny.parent / "runs" / "tiny"
    names = [f"{variant}-seed={seed}" for variant in ("dense", "points=1", "deform") for seed in (0, 1)]
    ledger = json.loads((folder / "sweep.json").read_text())["runs"]
    assert list(ledger) == names
    assert [ledger[f"{variant}-seed=0"]["variant"] for variant in ("dense", "points=1", "deform")] == [
        "dense", "points=1", "deform",
    ]  # fmt: skip
    header, _, *rows = (folder / "comparison.md").read_text().split("\n\n")[1].splitlines()
    assert header.startswith("| variant | AP | AP50 | params |")
    assert [row.split(" | ")[0] for row in rows] == ["| dense", "| points=1", "| deform"]
    assert "variant" in (folder / "comparison.csv").read_text().splitlines()[0]
    _assert_hparams(folder, {"variant", "attention", "points", "level"}, runs=6)
    again = sweep()
    assert "6 of 6 runs are already done" in again.stdout


@pytest.mark.slow
def test_failing_run_does_not_stop_the_others(tiny: Path) -> None:
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
def test_no_costs_are_measured_if_no_run_has_succeeded(tiny: Path) -> None:
    """That took 100 s, after which the failures were reported."""
    lr = ["train.optimizer.lr=1e30", "train.clip=null", "train.schedule.name=constant", "train.schedule.warmup=0"]
    ended = sweep("sweep.costs=true", *lr)
    assert ended.returncode == 1
    assert ended.stderr.count("failed: ") == 2
    assert "measuring" not in ended.stderr
    assert not (tiny.parent / "runs" / "tiny" / "costs.json").exists()


@pytest.mark.slow
def test_interrupted_sweep_saves_and_resumes(tiny: Path) -> None:
    steps = "train.steps=200"
    command = [sys.executable, "-m", "attnzoo.run", "tiny.yaml", steps, "train.log_every=5"]
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


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_interrupt_before_training_leaves_no_record(tiny: Path, processes: int) -> None:
    command = [sys.executable, "-m", "attnzoo.run", "tiny.yaml", "jobs=1", f"processes={processes}"]
    launcher = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log = tiny.parent / "runs/tiny/points=1-seed=0/log.txt"
    deadline = time.monotonic() + 300
    while not log.exists():  # created just before the process, which then imports for seconds
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(launcher.pid, signal.SIGINT)
    _, err = launcher.communicate(timeout=300)
    assert launcher.returncode == 130
    assert "to resume, run the same command again" in err
    assert log.read_text() == "" or log.read_text().endswith(" INFO interrupted before training started\n")
    assert not (log.parent / "status.json").exists()


@pytest.mark.slow
def test_killed_run_is_retried(tiny: Path) -> None:
    """After SIGKILL to its process, once; the results equal those of an uninterrupted sweep."""
    command = [sys.executable, "-m", "attnzoo.run", "tiny.yaml", "train.steps=150", "train.checkpoint_every=10"]
    process = subprocess.Popen([*command, "jobs=2"], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run = tiny.parent / "runs/tiny/points=1-seed=0"
    deadline = time.monotonic() + 240
    while not list(run.glob("checkpoints/step-*.pt")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(json.loads((run / "status.json").read_text())["pid"], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "machine failure (killed by SIGKILL)" in out
    assert ": retrying" in out
    shown = subprocess.run([sys.executable, "-m", "attnzoo", "status", "runs/tiny", "--json"], capture_output=True)
    first, second = json.loads(shown.stdout)
    assert (first["state"], first["restarts"], first["machine_failures"]) == ("done", 1, 1)
    assert (second["state"], second["restarts"]) == ("done", 0)
    alone = "sweep.zip={model.encoder.attention.points: [1], model.decoder.attention.points: [1]}"
    whole = subprocess.run([*command, alone, "output=whole"], capture_output=True, timeout=300)
    assert whole.returncode == 0
    assert results(run) == results(tiny.parent / "whole/tiny/points=1-seed=0")


@pytest.mark.slow
@pytest.mark.long
def test_retries_end_if_every_start_is_killed(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start is killed in its second step."""
    monkeypatch.setenv("ATTNZOO_TEST_KILL", "2")
    plugin = Path(__file__).parents[1] / "support" / "slurm_plugin.py"
    attention = "model.encoder.attention={name: slow, points: 1}"
    ended = sweep(f"plugins=[{plugin}]", attention, "retries=1", "sweep.zip={}")
    assert ended.returncode == 1, ended.stderr
    assert "failed: seed=0: 2 machine failures in a row at step 0 (retries = 1" in ended.stderr
    status = json.loads((tiny.parent / "runs/tiny/seed=0/status.json").read_text())
    assert status["state"] == "failed"
