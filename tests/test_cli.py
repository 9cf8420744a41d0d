"""The command line: its errors, and whole sweeps with the real trainer."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from support.engine import TINY_SCENES, without_speed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from attnzoo import __main__ as attnzoo_main
from attnzoo import attention, catalog, models
from attnzoo import run as attnzoo_run
from attnzoo.config.load import load
from attnzoo.errors import UserError
from attnzoo.sweep.run import _num_jobs

SWEEP = """\
sweep:
  zip: {model.encoder.attention.points: [1, 2], model.decoder.attention.points: [1, 2]}
  seeds: [0]
  costs: false
jobs: 2
"""
TINY = TINY_SCENES + SWEEP


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    (tmp_path / "broken.py").write_text("import no_such_library\n")
    return path


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
        (["tiny.yaml", "model.backbone.weights=none.pth"], "file not found: none.pth"),
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
        (["tiny.yaml", f"plugins=[{'m' * 300}.py]"], "does not exist"),
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


def test_list_without_name_prints_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert attnzoo_main.main(["list"]) == 0
    out = capsys.readouterr().out
    assert f"attentions: {', '.join(attention.names())}\n" in out
    assert {"dense", "deform", "ms_deform", "dat"} <= set(attention.names())
    assert "deformable_detr_r50_two_stage" in out
    assert "detection data sets: coco, digit_scenes" in out
    assert "classification data sets: digits, folder, timm" in out
    assert attnzoo_main.main(["list", "--ops"]) == 0
    assert "reference: available" in capsys.readouterr().out


def test_list_describes_one_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert attnzoo_main.main(["list", "ms_deform"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ms_deform (attention)\n  ")
    assert "  paper: Zhu et al., " in out
    assert "  roles: decoder, encoder, stage\n" in out
    assert "    points: int, default 4\n" in out
    assert attnzoo_main.main(["list", "none"]) == 0
    assert "none (detection augmentation)" in (out := capsys.readouterr().out)
    assert "none (classification augmentation)" in out
    assert out.count("options: none") == 2
    assert attnzoo_main.main(["list", "coco"]) == 0
    out = capsys.readouterr().out
    assert "    root: str, required\n" in out
    assert "    labels: 'category_id' | 'contiguous', default category_id\n" in out
    assert attnzoo_main.main(["list", "dat_small"]) == 0
    out = capsys.readouterr().out
    assert "  paper: Xia et al., CVPR 2022\n" in out
    assert "  options that the preset sets; the others have their defaults:\n" in out
    assert "    stage3.depth: 18\n" in out


def test_list_matches_patterns_and_suggests_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert attnzoo_main.main(["list", "dat*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("dat (attention): ")
    assert [line.partition(" ")[0] for line in lines[1:]] == [name for name in models.names() if name.startswith("dat")]
    assert attnzoo_main.main(["list", "dense*"]) == 0
    assert capsys.readouterr().out.startswith("dense (attention)\n")
    assert attnzoo_main.main(["list", "dens"]) == 2
    err = capsys.readouterr().err
    assert err == "error: unknown name 'dens'; did you mean 'dense'? (`python -m attnzoo list` shows all names)\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DAT", "unknown name 'DAT'; did you mean 'dat'?"),
        ("zzzz", "unknown name 'zzzz' ("),
        ("zzz*", "no name matches 'zzz*' ("),
        ("DAT*", "no name matches 'DAT*'; did you mean 'dat*'?"),
    ],
)
def test_name_that_list_does_not_know_is_one_line(capsys: pytest.CaptureFixture[str], name: str, message: str) -> None:
    assert attnzoo_main.main(["list", name]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_every_attention_has_a_summary_and_a_paper() -> None:
    for name in attention.names():
        (entry,) = (entry for entry in catalog.find(name) if entry.kind == "attention")
        assert entry.summary
        assert not re.search(r"[a-z][A-Z]", re.sub("LeCun|ConvNets", "", entry.summary))  # no class names
        assert re.search(r"et al.* (19|20)\d\d", entry.paper)


def sweep(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "attnzoo.run", "tiny.yaml", *arguments]
    return subprocess.run(command, text=True, capture_output=True, timeout=300)


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
    plugin = Path(__file__).with_name("support") / "slurm_plugin.py"
    attention = "model.encoder.attention={name: slow, points: 1}"
    ended = sweep(f"plugins=[{plugin}]", attention, "retries=1", "sweep.zip={}")
    assert ended.returncode == 1, ended.stderr
    assert "failed: seed=0: 2 machine failures in a row at step 0 (retries = 1" in ended.stderr
    status = json.loads((tiny.parent / "runs/tiny/seed=0/status.json").read_text())
    assert status["state"] == "failed"


def results(run: Path) -> list[dict[str, float]]:
    """The metrics of a run without its speed."""
    return [without_speed(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.long
def test_several_processes_with_launcher_and_torchrun(tiny: Path) -> None:
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
@pytest.mark.long
def test_torchrun_accepts_only_and_dry_run(tiny: Path) -> None:
    def torchrun(*arguments: str) -> str:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
        command += ["attnzoo.run", "tiny.yaml", "sweep.zip={}", *arguments]
        done = subprocess.run(command, text=True, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    folder = tiny.parent / "runs" / "tiny"
    assert torchrun("--dry-run").count("seed=0") == 2  # in one table: the run and its folder
    assert not folder.parent.exists()
    torchrun("--only", "failed")
    assert not (folder / "seed=0" / "status.json").exists()
    torchrun("--only", "missing")
    assert json.loads((folder / "seed=0" / "status.json").read_text())["state"] == "done"
    status = folder / "seed=0" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"state": "failed", "error": "x"}))
    torchrun("--only", "missing")
    assert json.loads(status.read_text())["state"] == "failed"
    torchrun("--only", "failed")
    assert json.loads(status.read_text())["state"] == "done"


@pytest.mark.slow
@pytest.mark.long
def test_torchrun_on_a_terminal_shows_a_progress_bar(tiny: Path) -> None:
    tiny.write_text(TINY.replace("steps: 3", "steps: 60").replace("[1, 2]", "[1]"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m"]
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "200"}
    with subprocess.Popen([*torchrun, "attnzoo.run", "tiny.yaml"], stdout=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # at the end of the process
            while part := os.read(ours, 65536):
                shown += part
    os.close(ours)
    assert process.returncode == 0
    assert "━".encode() in shown
    assert re.search(rb"\d+/60 .*loss", shown)
    assert b"train/loss" in shown  # log lines are printed above it


@pytest.mark.slow
def test_user_error_under_torchrun_is_reported_and_writes_nothing(tiny: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = [*torchrun, "attnzoo.run", "tiny.yaml", "train.stpes=3"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300)
    assert done.returncode != 0
    assert "did you mean 'train.steps'?" in done.stderr
    assert not (tiny.parent / "runs").exists()


def test_automatic_number_of_jobs(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)))
    for overrides, jobs in ((["jobs=3"], 3), (["jobs=auto"], 7), (["jobs=auto", "threads=2"], 3)):
        assert _num_jobs(load(tiny, ["device=cpu", *overrides])) == jobs
    assert _num_jobs(load(tiny, ["device=cpu", "jobs=auto", "threads=9"])) == 1
    with pytest.raises(UserError, match=r"jobs = 'many': expected"):
        load(tiny, ["jobs=many"])
