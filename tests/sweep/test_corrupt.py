"""One corrupt file of one run: it is named, with how to mend it, and the other runs of the sweep go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.corrupt import corrupt
from support.run_folder import create_sweep, finish

from attnzoo import __main__ as attnzoo_main
from attnzoo import run as attnzoo_run
from attnzoo.errors import ExitCode
from attnzoo.report.compare import compare
from attnzoo.report.status import sweep_status
from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep.expand import RunSpec

KINDS = [  # of the first runs; the last but one is intact, and the last not trained yet
    ("status.json", "emptied"),
    ("status.json", "cut"),
    ("config.yaml", "emptied"),
    ("config.yaml", "cut"),
    ("config.yaml", "cut at a line end"),
    ("config.yaml", "deleted"),
    ("metrics.jsonl", "torn"),
]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """The runs of the sweep: one corrupt run of each kind, a finished one, and one that is not trained yet."""
    monkeypatch.chdir(tmp_path)
    runs = create_sweep(range(9))
    for run in runs[:-1]:
        finish(run.folder)
    for run, (name, how) in zip(runs, KINDS, strict=False):
        corrupt(run.folder.path / name, how)
    return runs


def content(runs: list[RunSpec]) -> dict[Path, bytes]:
    return {path: path.read_bytes() for run in runs for path in run.folder.path.iterdir() if path.is_file()}


def assert_reported(lines: list[str], runs: list[RunSpec]) -> None:
    """Each corrupt run is named in one line, with its file and how to mend it."""
    lines = [line for line in lines if line.startswith("corrupt: ")]
    for line, run, (name, _) in zip(lines, runs, KINDS, strict=False):
        assert line.startswith(f"corrupt: {run.folder.path / name}:")
        assert "delete" in line
    assert len(lines) == len(KINDS)


def test_the_other_runs_of_a_sweep_go_on(runs: list[RunSpec], capfd: pytest.CaptureFixture[str]) -> None:
    before = content(runs[:-1])
    assert attnzoo_run.main(["x.yaml"]) == ExitCode.FAILED
    out, err = capfd.readouterr()
    assert_reported(err.splitlines(), runs)
    assert "1 of 9 runs are already done" in out
    assert "7 of 9 runs skipped" in out
    assert runs[-1].folder.read_status()["state"] == "done"
    after = content(runs[:-1])
    assert {path: after[path] for path in before} == before
    assert len(list(Path("runs/x").glob("seed=*"))) == len(runs)  # none was given another folder
    (variant,) = compare([Path("runs/x")]).variants
    assert variant.seeds == (7, 8)
    assert Path("runs/x/comparison.md").read_text().count("Left out: ") == len(KINDS)


def test_a_comparison_names_every_corrupt_run(runs: list[RunSpec]) -> None:
    comparison = compare([Path("runs/x")])
    notes = [note for note in comparison.notes if note.startswith("Left out: ")]
    for note, run, (name, _) in zip(notes, runs, KINDS, strict=False):
        assert f"{run.folder.path / name}:" in note
        assert "delete" in note
    assert len(notes) == len(KINDS)
    assert comparison.variants[0].seeds == (7,)


OTHER_PROCESS = """
import json, sys
from attnzoo.rundir import process
print(json.dumps(process.current()), flush=True)
sys.stdin.read()
"""


def test_cancel_stops_corrupt_runs_and_the_others(runs: list[RunSpec], capsys: pytest.CaptureFixture[str]) -> None:
    """One corrupt run and one intact run train here."""
    command = [sys.executable, "-c", OTHER_PROCESS]
    training = [run for run in runs if run.seed in (6, 7)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in training]
    try:
        for run, process in zip(training, processes, strict=True):
            assert process.stdout
            run.folder.write_status(state="running", **json.loads(process.stdout.readline()))
        statuses = {status.name: status for status in sweep_status(Path("runs/x"))}
        assert [(statuses[run.name].state, statuses[run.name].active) for run in training] == [
            ("corrupt", True),
            ("running", True),
        ]
        assert attnzoo_main.main(["cancel", "runs/x"]) == ExitCode.OK
        assert [process.wait(timeout=20) for process in processes] == [-signal.SIGTERM] * 2
        assert capsys.readouterr().out == "cancelled: 2 of 9 runs (0 SLURM jobs, 2 local)\n"
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_status_and_cancel_of_a_sweep_whose_ledger_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They refused while its runs trained."""
    monkeypatch.chdir(tmp_path)
    done, training, _ = create_sweep(range(3))
    finish(done.folder)
    process = subprocess.Popen([sys.executable, "-c", OTHER_PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        training.folder.write_status(state="running", **json.loads(process.stdout.readline()))
        Path("runs/x/sweep.json").unlink()
        statuses = [(status.name, status.state) for status in sweep_status(Path("runs/x"))]
        assert statuses == [("seed=0", "done"), ("seed=1", "running"), ("seed=2", "pending")]
        assert attnzoo_main.main(["cancel", "runs/x"]) == ExitCode.OK
        assert process.wait(timeout=20) == -signal.SIGTERM
        assert capsys.readouterr().out == "cancelled: 1 of 3 runs (0 SLURM jobs, 1 local)\n"
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("content", ["{}", '{"experiment": "x.yaml", "submissions": {}}', '{"runs": {}}'])
def test_a_ledger_without_runs_is_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    """It was an empty sweep, of which `cancel` cancelled nothing."""
    monkeypatch.chdir(tmp_path)
    runs = create_sweep(range(2))
    for run in runs:
        finish(run.folder)
    Path("runs/x/sweep.json").write_text(content)
    assert [(status.name, status.state) for status in sweep_status(Path("runs/x"))] == [
        ("seed=0", "done"),
        ("seed=1", "done"),
    ]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("runs/x/sweep.json: corrupt; rebuilt from the runs and their jobs; ")
    assert attnzoo_main.main(["cancel", "runs/x"]) == ExitCode.OK
    assert capsys.readouterr().out == "cancelled: 0 of 2 runs (0 SLURM jobs, 0 local)\n"
    assert json.loads(Path("runs/x/sweep.json").read_text())["runs"].keys() == {"seed=0", "seed=1"}


@pytest.mark.parametrize(
    "make", [os.mkfifo, Path.touch, lambda path: path.symlink_to("nowhere")], ids=["pipe", "file", "broken link"]
)
def test_what_lies_in_place_of_the_folder_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], make: Callable[[Path], object]
) -> None:
    """The sweep ended with an error about another path, without its comparison."""
    monkeypatch.chdir(tmp_path)
    runs = create_sweep(range(3))
    for run in runs:
        finish(run.folder)
    path = runs[0].folder.path
    shutil.rmtree(path)
    make(path)
    assert attnzoo_run.main(["x.yaml"]) == ExitCode.FAILED
    out, err = capfd.readouterr()
    assert err == f"corrupt: {path}: not a folder; delete it\n"
    assert "2 of 3 runs are already done" in out
    assert Path("runs/x/comparison.md").exists()
    assert attnzoo_main.main(["status", "runs/x"]) == ExitCode.FAILED
    assert attnzoo_main.main(["cancel", "runs/x"]) == ExitCode.OK
    assert "not a folder; delete it" in " ".join(capfd.readouterr().out.split())


def test_a_run_whose_folder_cannot_be_written_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No run was trained, and the folder of the sweep was blamed."""
    monkeypatch.chdir(tmp_path)
    runs = create_sweep(range(2))
    config = runs[0].folder.config
    config.unlink()
    config.mkdir()  # stands for a folder that may not be written, which root may
    assert attnzoo_run.main(["x.yaml"]) == ExitCode.FAILED
    out, err = capfd.readouterr()
    assert err == f"not started: seed=0: {config}: cannot be written (Is a directory)\n"
    assert "skipped" not in out
    assert runs[1].folder.read_status()["state"] == "done"


@pytest.mark.slow
def test_torchrun_leaves_corrupt_runs_out(runs: list[RunSpec]) -> None:
    """With one process, so that the runs are those of the local launcher."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m"]
    ended = subprocess.run([*torchrun, "attnzoo.run", "x.yaml"], capture_output=True, text=True, timeout=300)
    assert ended.returncode == ExitCode.FAILED
    assert_reported(ended.stderr.splitlines(), runs)
    assert "± " in ended.stdout
    assert runs[-1].folder.read_status()["state"] == "done"


@pytest.mark.slow
def test_a_status_that_becomes_corrupt_in_training_stops_that_run_alone(
    runs: list[RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNZOO_TEST_SLEEP", "0.2")
    plugin = Path(__file__).parents[1] / "support" / "slurm_plugin.py"
    options = [f"plugins=[{plugin}]", "model.encoder.attention={name: slow, points: 1}", "train.steps=40"]
    command = [sys.executable, "-m", "attnzoo.run", "x.yaml", *options, "sweep.seeds=[0, 1]", "jobs=2", "output=other"]
    launcher = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first, second = (RunFolder(f"other/x/seed={seed}") for seed in (0, 1))
    end = time.monotonic() + 120
    while not first.read_status().get("step"):
        assert time.monotonic() < end
        assert launcher.poll() is None
        time.sleep(0.05)
    first.status.write_bytes(b"")
    _, err = launcher.communicate(timeout=300)
    assert launcher.returncode == ExitCode.FAILED
    assert f"corrupt: {first.status}: corrupt; delete it" in err
    assert second.read_status()["state"] == "done"
