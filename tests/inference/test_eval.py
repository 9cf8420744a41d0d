"""`attnzoo eval` of trained runs."""

import json
from pathlib import Path

import pytest

import attnzoo
from attnzoo.__main__ import main
from attnzoo.data.build import build_dataset
from attnzoo.errors import ExitCode
from attnzoo.inference.evaluate import evaluate, recorded_metrics
from attnzoo.rundir.folder import RunFolder


@pytest.mark.parametrize("task", ["detection", "classification"])
def test_eval_gives_exactly_what_the_run_recorded(
    task: str,
    run: RunFolder,
    classifier_run: RunFolder,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained = run if task == "detection" else classifier_run
    model = attnzoo.load_model(trained.path)
    recorded = recorded_metrics(model)
    assert recorded is not None
    assert f"best-{recorded[0]:08d}" in model.weights.name
    first, second = evaluate(model), evaluate(model, per_class=True)
    assert (first.cached, second.cached) == (False, True)
    for result in (first, second):
        finite = {name: value for name, value in result.metrics.items() if value == value}
        assert finite == recorded[1]  # NaN is not recorded
    assert second.per_class
    assert not first.per_class
    assert first.num_images == (20 if task == "detection" else 10)
    assert all(first.metrics[name] > 0 for name in ("AP", "AR_100", "top1", "loss") if name in first.metrics)
    assert not first.differences
    assert main(["eval", str(trained.path), "--per-class"]) == 0
    printed = capsys.readouterr().out
    assert "predictions from the cache" in printed
    assert f"equal to what the run recorded at step {recorded[0]}" in printed


def test_eval_of_another_checkpoint_and_settings(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attnzoo.inference.speed.SECONDS", 0.0)
    (path,) = run.checkpoints.glob("step-00000020.*")
    first = str(path)
    recorded = {key: value for row in run.read_metrics() for key, value in row.items() if row["step"] == 20}
    assert main(["eval", first, "--json", "--speed", "--no-cache"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["metrics"]["AR_100"] == recorded["val/AR_100"] > 0
    assert set(content["speed"]["images_per_second"]) == {"1", "4"}
    assert content["speed"]["size"] == [32, 32]
    assert main(["eval", first, "--json", "data.dataset.val_images=4", "data.val_batch_size=3"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4
    for override, message in [
        ("data.dataset.val_image=4", "val_image"),
        ("data.dataset.name=coco", "root"),
        ("data.dataset={name: coco, root: .}", "error: data.dataset.val_annotations: "),
        ("model.dim=32", "size mismatch"),
    ]:
        assert main(["eval", first, override]) == ExitCode.USER_ERROR
        assert message in capsys.readouterr().err


def test_eval_needs_no_training_images(
    run: RunFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = attnzoo.load_model(run.path).settings
    dataset = build_dataset(settings.data, "val", settings.seed)
    (tmp_path / "annotations").mkdir()
    content = dict(dataset.coco.dataset)
    content["categories"] = [*content["categories"][:9], {"id": 9, "name": "nine"}]
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    (tmp_path / "val2017").symlink_to(dataset.image_dir)
    arguments = ["data.dataset.name=coco", f"data.dataset.root={tmp_path}", "--json", "data.dataset.labels=contiguous"]
    assert main(["eval", str(run.path), *arguments]) == 0
    printed = capsys.readouterr()
    recorded = recorded_metrics(attnzoo.load_model(run.path))
    assert recorded is not None
    assert json.loads(printed.out)["metrics"]["AP"] == recorded[1]["AP"]
    assert "classes differ: 9 is '9' in the model, 'nine' in the data set" in printed.err
