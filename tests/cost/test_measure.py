"""The measurement from end to end, with tiny models; nothing depends on how long anything takes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.engine import TINY_SCENES
from support.models import CLASSES, tiny

from attnzoo import __main__ as attnzoo_main
from attnzoo.config import load as configs
from attnzoo.cost.measure import TIMINGS, measure_costs
from attnzoo.cost.step import Calls
from attnzoo.cost.subject import Subject
from attnzoo.cost.target import find_target
from attnzoo.engine.config import OptimizerConfig, TrainConfig
from attnzoo.errors import UserError
from attnzoo.rundir.costs import FILENAME, QUANTITIES, read_costs

CPU = torch.device("cpu")
SWEEP = """\
sweep:
  variants:
    few: {model.encoder.attention.points: 1}
    many: {model.encoder.attention.points: 2}
    slow: {train.optimizer.lr: 1e-5}
  seeds: [0, 1]
"""
TINY = TINY_SCENES + SWEEP


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def sweep(experiment: Path) -> Path:
    """The folders of the sweep's runs with their configs, untrained."""
    from attnzoo.sweep.expand import expand

    for run in expand(configs.Experiment(experiment)):
        configs.save(configs.load(experiment, [f"{k}={v}" for k, v in run.overrides.items()]), run.folder.config)
    return Path("runs/tiny")


def subject(train: TrainConfig | None = None, **changes: object) -> Subject:
    return Subject(tiny(**changes).config, CLASSES, (32, 48), 2, train or TrainConfig())


def test_everything_is_measured_in_the_same_rounds() -> None:
    subjects = {"one": subject(), "two": subject(decoder={"layers": 1}), "copy": subject()}
    costs = measure_costs(subjects, "one", CPU, 20.0)
    assert costs.notes == ("Equal in cost, measured once: one, copy.",)
    one, two, copy = costs.variants
    for quantity in QUANTITIES:
        assert one.values(quantity.key) == copy.values(quantity.key)  # the same model, measured once
        assert (costs.ratios("two", quantity.key) is not None) == (quantity.key != "extra_gflops")
    for timing in TIMINGS:
        assert len(one.values(timing)) == len(two.values(timing)) >= 3
        assert min(one.values(timing)) > 0
    assert two.params < one.params
    assert one.training_memory > one.inference_memory > 0
    assert {"machine", "versions", "operators", "sources", "memory", "convention"} <= costs.environment.keys()


def test_what_does_not_fit_is_not_measured() -> None:
    costs = measure_costs({"one": subject()}, "one", CPU, 1e-6)
    assert [note.partition(":")[0] for note in costs.notes] == ["throughput", "training step"]
    assert len(costs.variants[0].latency) == 3
    assert costs.variants[0].throughput == costs.variants[0].training == ()


def test_nothing_runs_in_zero_seconds() -> None:
    costs = measure_costs({"one": subject()}, "one", CPU, 0)
    assert costs.notes == ()
    assert costs.variants[0].latency == ()


def test_training_does_not_change_the_work() -> None:
    """Weights stay what they are, whatever the learning rate of the recipe, and no gradients are left."""
    train = TrainConfig(clip=0.1, precision="bf16", channels_last=True, optimizer=OptimizerConfig(lr=10.0))
    calls = Calls(subject(train), CPU)
    before = {name: value.clone() for name, value in calls.model.named_parameters()}
    for _ in range(3):
        calls.train_step()
    assert calls.model.training
    for name, value in calls.model.named_parameters():
        assert value.grad is None
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=1e-6)
    calls.infer_one()
    assert not calls.model.training


def test_equal_costs_are_recognised() -> None:
    base, other = subject(), subject(TrainConfig(optimizer=OptimizerConfig(lr=1.0)))
    assert base.cost_key == other.cost_key
    for different in (subject(TrainConfig(precision="bf16")), base.at((32, 32)), subject(queries=7)):
        assert different.cost_key != base.cost_key


def test_variants_of_an_experiment(experiment: Path) -> None:
    target = find_target(str(experiment))
    assert list(target.subjects) == ["few", "many", "slow"]
    assert target.baseline == "few"
    assert target.threads == 1
    assert target.sweep is None
    few, many, slow = target.subjects.values()
    assert (few.size, few.batch_size, few.num_classes) == ((32, 32), 4, 10)
    assert len({few.digest, many.digest, slow.digest}) == 3


def test_settings_of_an_experiment_can_be_changed(experiment: Path, sweep: Path) -> None:
    changed = find_target(str(experiment), overrides=["data.batch_size=2", "sweep.baseline=many"])
    assert [subject.batch_size for subject in changed.subjects.values()] == [2, 2, 2]
    assert changed.baseline == "many"
    with pytest.raises(UserError, match=r"model\.heds"):
        find_target(str(experiment), overrides=["model.heds=2"])
    for target, kind in ((str(sweep), "folder of runs"), ("swin_tiny", "preset")):
        message = f"model.heads=4: {target} is a {kind}; only experiment files take key=value"
        with pytest.raises(UserError, match=re.escape(message)):
            find_target(target, overrides=["model.heads=4"])


def test_variants_of_a_sweep(sweep: Path) -> None:
    target = find_target(str(sweep), "many")
    assert set(target.subjects) == {"few", "many", "slow"}
    assert (target.sweep, target.baseline) == (sweep, "many")
    run = find_target(str(sweep / "slow-seed=1"))
    assert list(run.subjects) == ["slow"]
    assert run.sweep is None


def test_a_corrupt_run_is_replaced_by_another_seed_or_left_out(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("few-seed=1", "many-seed=0", "many-seed=1"):
        (sweep / name / "config.yaml").write_text("name: [")
    assert list(find_target(str(sweep)).subjects) == ["few", "slow"]
    captured = capsys.readouterr()
    assert re.match(r"variant many is left out: \S+/many-seed=0/config.yaml:1: not valid YAML", captured.err)
    for run in sweep.iterdir():
        (run / "config.yaml").write_text("name: [")
    with pytest.raises(UserError, match=r"config\.yaml"):
        find_target(str(sweep))


def test_the_baseline_is_that_of_the_sweep(experiment: Path) -> None:
    experiment.write_text(TINY + "  baseline: many\n  aa: true\n")
    target = find_target(str(experiment))
    assert target.baseline == "many"
    assert list(target.subjects) == ["few", "many", "slow", "many-aa"]
    assert target.subjects["many"].cost_key == target.subjects["many-aa"].cost_key
    assert find_target(str(experiment), "slow").baseline == "slow"


def test_a_single_run_is_named_by_its_experiment(experiment: Path) -> None:
    experiment.write_text(TINY.partition("sweep:")[0])
    assert list(find_target(str(experiment)).subjects) == ["tiny"]


@pytest.mark.slow
def test_a_process_of_its_own_measures_a_sweep(sweep: Path) -> None:
    command = [sys.executable, "-m", "attnzoo.cost", str(sweep), "--seconds", "2", "--baseline", "many"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    costs = read_costs(sweep)
    assert costs is not None
    assert costs.baseline == "many"
    assert {variant.name for variant in costs.variants} == {"few", "many", "slow"}
    assert all(len(variant.latency) >= 3 for variant in costs.variants)
    assert "Ratios to many" in result.stdout
    assert f"written: {sweep / FILENAME}" in result.stdout
    assert json.loads((sweep / FILENAME).read_text())["environment"]["kind"] == "costs"


def test_reading_costs_loads_no_torch() -> None:
    program = "import sys, attnzoo.rundir.costs, attnzoo.cost.cli\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_command_prints_published_figures_and_parts(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["cost", "swin_tiny", "--seconds", "0", "--by-module", "--at", "224x224", "64x96"]
    assert attnzoo_main.main(command) == 0
    output = capsys.readouterr().out
    assert "1 GFLOP = 10⁹ multiply-accumulates" in output
    assert re.search(r"GFLOPs +4\.491 +4\.5 +-0\.2 %", output)
    assert output.count("Published at") == 1
    assert re.findall(r"swin_tiny at (\d+ x \d+), by part", output) == ["224 x 224", "64 x 96"]
    assert re.search(r"total +28,288,354 +4\.491 +100\.0", output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("swin_tinny", "swin_tinny: no such experiment file, folder of runs or preset; did you mean 'swin_tiny'?"),
        ("nope.yaml", "nope.yaml: no such experiment file"),
        (
            "tiny.yaml --baseline fwe",
            "--baseline: unknown variant 'fwe'; did you mean 'few'? (allowed: few, many, slow)",
        ),
        ("tiny.yaml --at 32", "--at 32: expected HxW in pixels, such as 224x224"),
        ("tiny.yaml --at 0x32", "--at 0x32: expected HxW in pixels, such as 224x224"),
        ("tiny.yaml --at 99999x99999", "--at 99999x99999: expected at most 268,435,456 pixels"),
        ("tiny.yaml --seconds nan", "--seconds nan: must be 0 or more, and finite"),
        ("empty", "empty: no runs in it; expected a folder of runs, such as runs/ablate_points"),
        ("deformable_detr_r50_two_stage --at 64x64", "model.queries = 300: exceeds the 85 encoder tokens"),
    ],
)
def test_bad_input_is_one_line(
    experiment: Path, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    assert attnzoo_main.main(["cost", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1


def test_a_folder_that_cannot_be_written(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / FILENAME).mkdir()
    assert attnzoo_main.main(["cost", str(sweep), "--seconds", "1e-6"]) == 2
    assert "costs.json cannot be written" in capsys.readouterr().err
