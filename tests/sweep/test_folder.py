import json
import os
from pathlib import Path

import pytest
from support.corrupt import corrupt

from attnzoo import run as attnzoo_run
from attnzoo.config.load import Experiment, load_saved
from attnzoo.errors import UserError
from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep.expand import RunSpec, expand
from attnzoo.sweep.folder import SweepFolder, describe_restarts


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text("name: x\ntrain: {steps: 5}\nsweep: {grid: {model.dim: [8, 16]}, seeds: [0]}\n")
    return path


def runs(path: Path, *overrides: str) -> list[RunSpec]:
    return expand(Experiment(path, overrides))


def test_ledger_and_configs_are_written_before_anything_trains(experiment: Path, tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "runs" / "x")
    assigned = folder.assign(runs(experiment))
    assert not folder.path.exists()
    folder.create(assigned, str(experiment))
    folder.record_start(assigned[0])
    ledger = json.loads((folder.path / "sweep.json").read_text())
    assert ledger["experiment"] == str(experiment)
    entry = ledger["runs"]["dim=8-seed=0"]
    assert entry == {
        "variant": None,
        "variant_name": "dim=8",
        "overrides": {"model.dim": 8},
        "labels": {"dim": 8},
        "seed": 0,
        "digest": assigned[0].digest,
        "attempts": 1,
    }
    assert load_saved(assigned[1].folder.config) == assigned[1].config


def test_folder_never_holds_two_configs(experiment: Path, tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "runs" / "x")
    folder.create(folder.assign(runs(experiment)), "x")
    changed = folder.assign(runs(experiment, "train.steps=6"))
    assert changed[0].folder.path.name == f"dim=8-seed=0-{changed[0].digest}"
    folder.create(changed, "x")
    assert [p.folder.path for p in folder.assign(runs(experiment, "train.steps=6"))] == [p.folder.path for p in changed]
    assert folder.assign(runs(experiment, "jobs=3"))[0].folder.path.name == "dim=8-seed=0"


def test_restarts_from_scratch_are_explained_in_one_line(experiment: Path, tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "runs" / "x")
    first = folder.assign(runs(experiment))
    assert describe_restarts(first) is None
    folder.create(first, "x")
    changed = folder.assign(runs(experiment, "processes=2"))
    reason = "dim=8-seed=0 has processes = 1, now 2"
    expected = f"2 of 2 runs restart from scratch, the first in {changed[0].folder.path}: {reason}"
    assert describe_restarts(changed) == expected
    folder.create(changed, "x")
    assert describe_restarts(folder.assign(runs(experiment, "processes=2"))) is None
    assert describe_restarts(folder.assign(runs(experiment))) is None
    longer = str(describe_restarts(folder.assign(runs(experiment, "train.steps=6"))))
    assert "has train.steps = 5, now 6; a run cannot be lengthened, because " in longer
    assert "sweep train.steps" in longer
    many = folder.assign(runs(experiment, "train={steps: 6, clip: 1, ema: 0.5}", "plugins=[a.py]", "threads=2"))
    assert str(describe_restarts(many)).endswith("has threads = 1, now 2; plugins; train.steps = 5, now 6 and more")
    (first[0].folder.config).write_text("name: [")
    damaged = folder.assign(runs(experiment, "threads=4"))
    assert "dim=8-seed=0 has a config.yaml that is damaged or was changed" in str(describe_restarts(damaged))


@pytest.mark.parametrize("experiment_changes", [False, True])
def test_edited_config_of_a_run_is_compared_with_what_the_run_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], experiment_changes: bool
) -> None:
    """`attnzoo run RUN/config.yaml` compared the edited file with itself: "has ; a run cannot be lengthened"."""
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("name: x\ntrain: {steps: 5}\n")
    from attnzoo.sweep.check_runs import check_runs

    folder = SweepFolder(Path("runs/x"))
    experiment = Experiment("x.yaml")
    (run,) = folder.assign(check_runs(experiment, expand(experiment)))
    folder.create([run], "x.yaml")
    run.folder.write_status(state="interrupted", signal="SIGTERM")
    text = run.folder.config.read_text()
    run.folder.config.write_text(text.replace("clip: 0.1", "clip: 0.2"))
    if experiment_changes:
        Path("x.yaml").write_text("name: x\ntrain: {steps: 6}\n")
    assert attnzoo_run.main([str(run.folder.config), "--dry-run"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "from scratch" in line)
    restore = "changed since it was written: restore it to resume that run"
    if experiment_changes:
        assert line.endswith(f"has a config.yaml that is damaged or was {restore}")
    else:
        assert line.endswith(f"seed=0 has train.clip = 0.1, now 0.2; its config.yaml was {restore}")


def test_ledger_keeps_earlier_runs_that_were_started(experiment: Path, tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "runs" / "x")
    first = folder.assign(runs(experiment))
    folder.create(first, "x")
    first[0].folder.write_status(state="done")
    folder.create(folder.assign(runs(experiment, "sweep.grid={model.dim: [24]}")), "x")
    assert list(folder.entries()) == ["dim=8-seed=0", "dim=24-seed=0"]


def test_unwritable_output_folder_is_an_error(experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = SweepFolder(tmp_path / "file" / "x")
    with pytest.raises(UserError, match="cannot be written"):
        folder.create(folder.assign(runs(experiment)), "x")


def test_run_folder_with_foreign_files_is_not_used(experiment: Path, tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "runs")
    foreign = RunFolder(folder.path / "dim=8-seed=0")
    foreign.path.mkdir(parents=True)
    foreign.log.write_text("mine")
    assert folder.assign(runs(experiment))[0].folder.path != foreign.path


@pytest.mark.parametrize("how", ["emptied", "cut", "cut at a line end", "deleted"])
@pytest.mark.parametrize("state", ["done", "interrupted"])
def test_run_with_a_corrupt_config_keeps_its_folder(experiment: Path, tmp_path: Path, how: str, state: str) -> None:
    folder = SweepFolder(tmp_path / "runs" / "x")
    first = folder.assign(runs(experiment))
    folder.create(first, "x")
    first[0].folder.write_status(state=state, signal="SIGTERM")
    corrupt(first[0].folder.config, how)
    again = folder.assign(runs(experiment))
    assert [run.folder.path for run in again] == [run.folder.path for run in first]
    folder.create(again, "x", again[1:])
    assert "config.yaml" in str(first[0].folder.corruption())
    assert first[1].folder.corruption() is None


def test_a_rebuilt_ledger_has_the_launcher_from_its_next_start(experiment: Path, tmp_path: Path) -> None:
    """Else another `run` takes the runs that wait for it for ones that nobody is going to start."""
    folder = SweepFolder(tmp_path / "runs" / "x")
    assigned = folder.assign(runs(experiment))
    folder.create(assigned, str(experiment))
    folder.ledger.path.write_bytes(b"")
    folder.record_start(assigned[0])
    content = folder.ledger.read()
    assert content["runs"].keys() == {"dim=8-seed=0", "dim=16-seed=0"}
    assert content["local"]["pid"] == os.getpid()
