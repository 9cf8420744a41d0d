"""Sweeps that several users share: the modes of files, and what a user who may not read or write is told."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
from support.run_folder import finish

from attnzoo import __main__ as attnzoo_main
from attnzoo.attention import load_plugin
from attnzoo.config.files import find_experiment, find_profile, load_layers
from attnzoo.config.load import Experiment
from attnzoo.data.coco_images import check_exist
from attnzoo.errors import ExitCode, UserError
from attnzoo.inference.image_files import find_images
from attnzoo.models.weights import files as weights_files
from attnzoo.rundir.folder import RunFolder, atomic_write
from attnzoo.rundir.ledger import Ledger
from attnzoo.sweep import snapshot
from attnzoo.sweep.check_runs import check_runs
from attnzoo.sweep.expand import expand
from attnzoo.sweep.folder import SweepFolder
from attnzoo.userdata import coco

EXPERIMENT = """
base: base/detr_scenes.yaml
name: x
data: {dataset: {name: digit_scenes, image_size: 32, sizes: [6, 14], train_images: 24, val_images: 6}, batch_size: 4}
model: {dim: 16, heads: 2, ffn: 16, queries: 5}
train: {steps: 2, log_every: 1, eval_every: null}
sweep: {seeds: [0, 1]}
"""
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED HERE: changing the user needs root")


@contextmanager
def umask(value: int) -> Iterator[None]:
    previous = os.umask(value)
    try:
        yield
    finally:
        os.umask(previous)


@contextmanager
def another_user() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A sweep of two finished runs, in a folder that everybody may read, unlike those of pytest."""
    with tempfile.TemporaryDirectory(dir="/tmp") as root:
        Path(root).chmod(0o755)
        yield _finished_sweep(Path(root).resolve(), monkeypatch)
        monkeypatch.undo()  # leave the folder


def _finished_sweep(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(root)
    Path("x.yaml").write_text(EXPERIMENT)
    sweep = SweepFolder(root / "runs" / "x")
    with umask(0o022):
        experiment = Experiment("x.yaml")
        runs = sweep.assign(check_runs(experiment, expand(experiment)))
        sweep.create(runs, "x.yaml")
        for run in runs:
            finish(run.folder)
    return sweep.path


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o027, 0o077])
def test_files_have_the_mode_of_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int) -> None:
    package = tmp_path / "attnzoo"
    package.mkdir()
    (package / "errors.py").write_text("")
    monkeypatch.setattr(snapshot, "PACKAGE", package)
    with umask(mask):
        with atomic_write(tmp_path / "a" / "text") as file:
            file.write("x")
        with Ledger(tmp_path / "b").update():
            pass
        code = snapshot.create_snapshot(tmp_path / "code", [])
    for path in (tmp_path / "a" / "text", tmp_path / "b" / "sweep.json", code / "attnzoo" / "errors.py"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert code.stat().st_mode & 0o777 == 0o777 & ~mask


@needs_root
def test_comparison_of_a_colleagues_runs_is_printed(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert attnzoo_main.main(["compare", str(sweep), "--csv"]) == ExitCode.OK  # imports everything first
    capsys.readouterr()
    with another_user():
        assert attnzoo_main.main(["compare", str(sweep)]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert "Finished seeds per variant: 2" in out
    assert err == f"{sweep}: the comparison was not written (Permission denied)\n"
    assert not (sweep / "comparison.md").exists()


@needs_root
def test_cancel_of_a_colleagues_runs_is_one_line(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with another_user():
        assert attnzoo_main.main(["cancel", str(sweep)]) == ExitCode.USER_ERROR
    assert capsys.readouterr().err == f"error: {sweep / '.sweep.lock'}: cannot be written (Permission denied)\n"


@needs_root
@pytest.mark.parametrize("private", ["folder", "status.json", "metrics.jsonl", "config.yaml"])
def test_a_run_that_may_not_be_read_is_named_and_the_others_count(
    sweep: Path, capsys: pytest.CaptureFixture[str], private: str
) -> None:
    path = sweep / "seed=0" if private == "folder" else sweep / "seed=0" / private
    path.chmod(0o700 if private == "folder" else 0o600)
    assert attnzoo_main.main(["compare", str(sweep), "--csv"]) == ExitCode.OK
    capsys.readouterr()
    with another_user():
        statuses = attnzoo_main.main(["status", str(sweep), "--json"])
        out, err = capsys.readouterr()
        assert (statuses, err) == (ExitCode.FAILED, "")
        assert out.count('"state": "done"') == 1
        assert "Permission denied" in out
        assert "delete" not in out
        compared = attnzoo_main.main(["compare", str(sweep), "--markdown"])
    out, err = capsys.readouterr()
    assert err == ""
    assert (compared, "Permission denied" in out) == (ExitCode.FAILED, True)


@needs_root
@pytest.mark.parametrize("name", ["seed=0/checkpoints", "slurm/001", "slurm"])
def test_other_folders_that_may_not_be_read_are_no_runs(
    sweep: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """`compare` named them as runs that it leaves out."""
    (sweep / name).mkdir(parents=True)
    (sweep / name).chmod(0o700)
    assert attnzoo_main.main(["compare", str(sweep), "--csv"]) == ExitCode.OK
    expected = capsys.readouterr()
    with another_user():
        assert attnzoo_main.main(["compare", str(sweep), "--csv"]) == ExitCode.OK
    assert capsys.readouterr() == expected


@needs_root
@pytest.mark.parametrize("command", ["status", "compare", "cancel"])
def test_a_sweep_that_may_not_be_read_is_one_line(
    sweep: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    sweep.chmod(0o700)
    with another_user():
        assert attnzoo_main.main([command, str(sweep)]) == ExitCode.USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {sweep}")
    assert "Permission denied" in line
    assert RunFolder(sweep / "seed=0").read_status()["state"] == "done"


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that others may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@needs_root
def test_files_that_may_not_be_read_are_named(shared: Path) -> None:
    """An experiment in a folder that may not be entered was "no such file", as were bases and plugins."""
    for name in ("x.yaml", "w.pt", "p.py", "instances_train.json"):
        (shared / name).write_text("{}")
        (shared / name).chmod(0)
    closed = shared / "closed"
    closed.mkdir(mode=0o600)
    (shared / "base.yaml").write_text("base: closed/x.yaml\n")
    calls: list[Callable[[], object]] = [
        lambda: find_experiment(closed / "x.yaml"),
        lambda: load_layers(shared / "base.yaml"),
        lambda: find_profile(str(closed / "x.yaml"), shared / "x.yaml"),
        lambda: load_plugin(str(closed / "p.py")),
        lambda: load_plugin(str(shared / "p.py")),
        lambda: weights_files.read(str(shared / "w.pt")),
        lambda: weights_files.read(str(closed / "w.pt")),
        lambda: coco._is_coco(shared / "instances_train.json"),
        lambda: check_exist(closed, [{"file_name": "a.png"}]),
        lambda: find_images([shared]),
    ]
    import_module("safetensors.torch")  # whose folder another user may not enter
    for call in calls:
        with another_user(), pytest.raises((UserError, PermissionError), match="Permission denied"):
            call()


@contextmanager
def in_a_writable_sweep(sweep: Path) -> Iterator[None]:
    """As a user who may write in the sweep's folder and in a cache, but not in all runs."""
    sweep.chmod(0o777)
    for name in ("sweep.json", ".sweep.lock"):
        (sweep / name).chmod(0o666)
    cache = sweep / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.MonkeyPatch.context() as patch, another_user():
        patch.setenv("ATTNZOO_CACHE", str(cache.resolve()))
        yield


@needs_root
@pytest.mark.parametrize("mode", [0o700, 0o711, 0o744])
@pytest.mark.parametrize("name", ["seed=0", "seed=1"])
def test_a_run_that_may_not_be_read_does_not_stop_the_others(
    sweep: Path, capsys: pytest.CaptureFixture[str], name: str, mode: int
) -> None:
    """`run` ended with "output folder runs/x: cannot be written", which was the wrong folder, and trained none."""
    assert attnzoo_main.main(["compare", str(sweep), "--csv"]) == ExitCode.OK  # imports everything first
    (sweep / name / "status.json").chmod(0o600)
    (sweep / name).chmod(mode)
    capsys.readouterr()
    with in_a_writable_sweep(sweep):
        code = attnzoo_main.main(["run", "x.yaml"])
    out, err = capsys.readouterr()
    assert "output folder" not in err
    assert f"corrupt: {Path('runs/x', name, 'status.json')}: Permission denied\n" in err
    assert (code, "1 of 2 runs are already done" in out) == (ExitCode.FAILED, True)
    assert set(Ledger(sweep).read()["runs"]) == {"seed=0", "seed=1"}


@needs_root
def test_an_entry_of_a_run_that_may_not_be_read_stays(sweep: Path) -> None:
    """Another sweep in the same folder forgot it."""
    (sweep / "seed=0").chmod(0o700)
    folder = SweepFolder(sweep)
    runs = folder.assign(expand(Experiment("x.yaml", ["sweep.seeds=[2]"])))
    with in_a_writable_sweep(sweep):
        assert folder.create(runs, "x.yaml", runs) == {}
    assert set(Ledger(sweep).read()["runs"]) == {"seed=0", "seed=1", "seed=2"}


@needs_root
@pytest.mark.parametrize("mode", [0o755, 0o711])
def test_a_run_that_may_not_be_written_is_named_and_the_others_are_prepared(sweep: Path, mode: int) -> None:
    (sweep / "seed=2").mkdir(mode=mode)
    folder = SweepFolder(sweep)
    with in_a_writable_sweep(sweep):
        runs = folder.assign(expand(Experiment("x.yaml", ["sweep.seeds=[2,3]"])))
        unwritable = folder.create(runs, "x.yaml", runs)
    config = sweep / "seed=2" / "config.yaml"
    assert unwritable == {"seed=2": f"{config}: cannot be written (Permission denied)"}
    assert (sweep / "seed=3" / "config.yaml").exists()
