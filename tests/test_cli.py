"""The command line: help, errors in one line, dry runs, the order of options."""

import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from support.sweep import write_tiny

from attnzoo import __main__ as attnzoo_main
from attnzoo import run as attnzoo_run
from attnzoo.config.load import load
from attnzoo.errors import UserError
from attnzoo.sweep.run import _num_jobs


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_tiny(tmp_path)


@pytest.mark.parametrize("module", [["attnzoo.run"], ["attnzoo"]])
def test_help_takes_less_than_a_second(module: list[str]) -> None:
    def seconds() -> float:
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", *module, "--help"], check=True, capture_output=True)
        return time.monotonic() - start

    assert any(seconds() < 1 for _ in range(5))  # the machine may be busy with other things


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
        (["tiny.yaml", "model.queries=1000"], "exceeds the 20 encoder tokens"),
        (["tiny.yaml", "model.backbone.options.in_chans=4"], "model: does not run on images of 32 x 32 pixels"),
        (["tiny.yaml", "model.backbone.weights=none.pth"], "none.pth: no such file"),
        (["tiny.yaml", "model.backbone.weights=tiny.yaml"], "tiny.yaml is not a state dict"),
        (["tiny.yaml", "data.batch_size=1000"], "there are only 24 training images"),
        (["tiny.yaml", "train.optimizer.name=adamww"], "did you mean 'adamw'?"),
        (
            ["tiny.yaml", "train.optimizer.lr_multipliers.bckbone=0.1"],
            "matches no parameter name; did you mean 'backbone'?",
        ),
        (["tiny.yaml", "train.optimizer.no_decay=[nromalize]"], "'nromalize' matches no parameter name"),
        (["tiny.yaml", "train.accumulate=7"], "train.accumulate = 7: more than the 6 batches of an epoch"),
        (["tiny.yaml", "seed=99999999999999999999999"], "at most 4294967295"),
        (["tiny.yaml", "data.dataset.noise=loud"], "error: command line: run "),
        (["tiny.yaml", "plugins=[mine.py]"], "plugin"),
        (["tiny.yaml", "plugins=[broken.py]"], "broken.py:1: ModuleNotFoundError: No module named 'no_such_library'"),
        (["tiny.yaml", "task=nosuch"], "command line: task: unknown task 'nosuch'"),
        (["tiny.yaml", "sweep.zip={model.dim: [8, 16], model.ffn: [8]}"], "error: command line: sweep.zip: expected"),
        (["tiny.yaml", "sweep.zip={}", "data.dataset.noise=loud"], "error: command line: data.dataset.noise = 'loud'"),
        (["tiny.yaml", "sweep.zip={}", "sweep.variants={a: {}, b: {model.preset: detr_r50}}"], "run b-seed=0: preset"),
        (["tiny.yaml", f"plugins=[{'m' * 300}.py]"], "no such file"),
        (
            ["tiny.yaml", "model.encoder.attention.slot=3"],
            "has no option 'slot' (options: points, offsets, weights, sampling)",
        ),
        (
            ["tiny.yaml", "model.encoder.attention.where=3"],
            "has no option 'where' (options: points, offsets, weights, sampling)",
        ),
        (
            ["tiny.yaml", "model.encoder.attention.self=3"],
            "has no option 'self' (options: points, offsets, weights, sampling)",
        ),
        (["tiny.yaml", "data.dataset.sizes=[6]"], "sizes = [6]: expected list of 2 float"),
        (["tiny.yaml", "data.dataset.where=3"], "data set 'digit_scenes' has no option 'where'"),
        (["tiny.yaml", "data.dataset.self=3"], "data set 'digit_scenes' has no option 'self'"),
        (["tiny.yaml", "data.augment.where=x"], "augmentation 'photometric' has no option 'where'"),
        (["tiny.yaml", "data.augment={}", "data.augment.split=x"], "augmentation 'photometric' has no option 'split'"),
        (["tiny.yaml", "train={[a]: 1}"], "command line: train:1: not valid YAML: a key must be a scalar"),
    ],
)
@pytest.mark.parametrize("extra", [[], ["--dry-run"]])
def test_user_errors_are_one_line_and_write_nothing(
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


@pytest.mark.parametrize(
    ("arguments", "program", "message"),
    [
        (["frobnicate"], "", "invalid choice: 'frobnicate'"),
        (["run"], " run", "required: EXPERIMENT.yaml"),
        (["run", "x", "--foo"], " run", "unrecognized arguments: --foo"),
        (["status", "--foo", "x"], " status", "unrecognized arguments: --foo"),
        (["cancel"], " cancel", "required: RUNS_DIR"),
        (["compare", "x", "--foo"], " compare", "unrecognized arguments: --foo"),
        (["check"], " check", "required: FILE.py|NAME"),
        (["check", "--foo", "dat"], " check", "unrecognized arguments: --foo"),
        (["list", "dat", "swin"], " list", "unrecognized arguments: swin"),
        (["bench", "foo"], " bench", "invalid choice: 'foo'"),
        (["bench", "ops", "--foo"], " bench ops", "unrecognized arguments: --foo"),
    ],
)
@pytest.mark.parametrize("script", ["/bin/attnzoo", "attnzoo/__main__.py"])
def test_wrong_argument_is_reported_by_its_command(
    arguments: list[str],
    program: str,
    message: str,
    script: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as ended:
        attnzoo_main.main()
    assert ended.value.code == 2
    start = "attnzoo" if script.startswith("/bin") else "python -m attnzoo"
    usage, *_, error = capsys.readouterr().err.splitlines()
    assert usage.startswith(f"usage: {start}{program} ")
    assert error.startswith(f"{start}{program}: error: ")
    assert message in error
    if program == " check":
        assert usage.endswith(" check [-h] [-v] FILE.py|NAME [NAME] [option=value …]")


def test_unwritable_output_is_a_one_line_error(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny.parent / "file").write_text("")
    assert attnzoo_run.main(["tiny.yaml", "output=file"]) == 2
    assert capsys.readouterr().err == "error: command line: output folder file/tiny: file is a file, not a folder\n"


def test_dry_run_lists_runs_and_writes_nothing(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert attnzoo_run.main(["tiny.yaml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "points=1-seed=0" in out
    assert "pending" in out
    assert "2 runs " in out
    assert "model.encoder.attention.points=2" in out
    assert not (tiny.parent / "runs").exists()


def test_dry_run_of_one_run_and_of_a_block(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = "{name: dense, dropout: 0.5}"
    assert attnzoo_run.main(["tiny.yaml", "--dry-run", f"sweep.zip={{model.encoder.attention: [{block}]}}"]) == 0
    out = capsys.readouterr().out
    assert "1 run " in out
    assert f"model.encoder.attention={block}" in out


def test_dry_run_of_several_processes_prints_on_rank_0_only(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun and srun start them: none joins a process group."""
    for variables in ({"RANK": "0", "WORLD_SIZE": "2"}, {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}):
        for rank in (0, 1):
            with monkeypatch.context() as patch:
                for name, value in variables.items():
                    patch.setenv(name, str(rank) if value == "0" else value)
                assert attnzoo_run.main(["tiny.yaml", "--dry-run"]) == 0
            out = capsys.readouterr().out
            assert ("points=1-seed=0" in out) == (rank == 0)
    assert not (tiny.parent / "runs").exists()


def test_override_of_swept_key_is_a_one_line_error(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert attnzoo_run.main(["tiny.yaml", "model.encoder.attention.points=4"]) == 2
    assert capsys.readouterr().err == (
        "error: command line: model.encoder.attention.points is overwritten by sweep.zip (run points=1-seed=0); "
        "replace the sweep with sweep.zip={...} or clear it with sweep.zip={}\n"
    )


@pytest.mark.parametrize("main", [attnzoo_run.main, lambda argv: attnzoo_main.main(["run", *argv])])
@pytest.mark.parametrize("position", range(4))
def test_options_and_overrides_may_come_in_any_order(
    tiny: Path, capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int], position: int
) -> None:
    argv = ["tiny.yaml", "train.steps=4", "sweep.seeds=[7]"]
    argv.insert(position, "--dry-run")
    assert main(argv) == 0
    assert "points=1-seed=7" in capsys.readouterr().out
    assert not (tiny.parent / "runs").exists()


def test_installed_command_runs_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    script = tomllib.loads(pyproject.read_text())["project"]["scripts"]["attnzoo"]
    entry = EntryPoint("attnzoo", script, "console_scripts").load()
    assert entry(["list", "--ops"]) == 0
    assert "reference: available" in capsys.readouterr().out


def test_closed_pipe_prints_no_traceback() -> None:
    left = subprocess.Popen(
        [sys.executable, "-m", "attnzoo", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert left.stdout
    assert left.stderr
    left.stdout.close()
    assert left.stderr.read() == ""
    assert left.wait() == 141


def test_automatic_number_of_jobs(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)))
    for overrides, jobs in ((["jobs=3"], 3), (["jobs=auto"], 7), (["jobs=auto", "threads=2"], 3)):
        assert _num_jobs(load(tiny, ["device=cpu", *overrides])) == jobs
    assert _num_jobs(load(tiny, ["device=cpu", "jobs=auto", "threads=9"])) == 1
    with pytest.raises(UserError, match=r"jobs = 'many': expected"):
        load(tiny, ["jobs=many"])
