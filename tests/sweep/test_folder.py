import json
from pathlib import Path

import pytest

from attnzoo.config.load import Experiment, load_saved
from attnzoo.errors import UserError
from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep.expand import RunSpec, expand
from attnzoo.sweep.folder import SweepFolder, explain_new


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text("name: x\ntrain: {steps: 5}\nsweep: {grid: {model.dim: [8, 16]}, seeds: [0]}\n")
    return path


def runs(path: Path, *overrides: str) -> list[RunSpec]:
    return expand(Experiment(path, overrides))


def test_ledger_and_configs_are_written_before_anything_trains(experiment: Path, tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "runs" / "x")
    planned = folder.place(runs(experiment))
    assert not folder.path.exists()
    folder.create(planned, str(experiment))
    folder.attempt(planned[0])
    ledger = json.loads((folder.path / "sweep.json").read_text())
    assert ledger["experiment"] == str(experiment)
    entry = ledger["runs"]["dim=8-seed=0"]
    assert entry == {
        "overrides": {"model.dim": 8},
        "options": {"dim": 8},
        "seed": 0,
        "digest": planned[0].run.digest,
        "attempts": 1,
    }
    assert load_saved(planned[1].dir.config) == planned[1].run.config


def test_a_folder_never_holds_two_configs(experiment: Path, tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "runs" / "x")
    folder.create(folder.place(runs(experiment)), "x")
    changed = folder.place(runs(experiment, "train.steps=6"))
    assert changed[0].dir.path.name == f"dim=8-seed=0-{changed[0].run.digest}"
    folder.create(changed, "x")
    assert [p.dir.path for p in folder.place(runs(experiment, "train.steps=6"))] == [p.dir.path for p in changed]
    assert folder.place(runs(experiment, "jobs=3"))[0].dir.path.name == "dim=8-seed=0"


def test_why_runs_begin_anew_is_said_once(experiment: Path, tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "runs" / "x")
    first = folder.place(runs(experiment))
    assert explain_new(first) is None
    folder.create(first, "x")
    changed = folder.place(runs(experiment, "processes=2"))
    said = f"2 of 2 runs begin anew, the first in {changed[0].dir.path}: dim=8-seed=0 has processes = 1, now 2"
    assert explain_new(changed) == said
    folder.create(changed, "x")
    assert explain_new(folder.place(runs(experiment, "processes=2"))) is None
    assert explain_new(folder.place(runs(experiment))) is None
    many = folder.place(runs(experiment, "train={steps: 6, clip: 1, ema: 0.5}", "plugins=[a.py]", "threads=2"))
    assert str(explain_new(many)).endswith("has threads = 1, now 2; plugins; train.steps = 5, now 6 and more")
    (first[0].dir.config).write_text("name: [")
    assert str(explain_new(folder.place(runs(experiment, "threads=4")))).endswith("dim=8-seed=0 holds something else")


def test_the_ledger_keeps_earlier_runs_that_were_started(experiment: Path, tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "runs" / "x")
    first = folder.place(runs(experiment))
    folder.create(first, "x")
    first[0].dir.write_status(state="done")
    folder.create(folder.place(runs(experiment, "sweep.grid={model.dim: [24]}")), "x")
    assert list(folder.entries()) == ["dim=8-seed=0", "dim=24-seed=0"]


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match=r"sweep\.json: corrupt"):
        SweepFolder(tmp_path).entries()


def test_an_unwritable_output_folder_is_named(experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = SweepFolder(tmp_path / "file" / "x")
    with pytest.raises(UserError, match="cannot be written"):
        folder.create(folder.place(runs(experiment)), "x")


def test_a_run_folder_with_foreign_files_is_left_alone(experiment: Path, tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "runs")
    foreign = RunFolder(folder.path / "dim=8-seed=0")
    foreign.path.mkdir(parents=True)
    foreign.log.write_text("mine")
    assert folder.place(runs(experiment))[0].dir.path != foreign.path
