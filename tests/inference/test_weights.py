"""`attnzoo weights` and `attnzoo new --weights` use the config beside the weights."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.oracles import CASES, QUERIES, small_model
from support.run_folder import create_untrained
from support.userdata import class_folders, coco

import attnzoo
from attnzoo import interop, models
from attnzoo.__main__ import main
from attnzoo.config.files import PACKAGED
from attnzoo.config.load import Experiment
from attnzoo.errors import UserError
from attnzoo.inference.weights import describe_weights
from attnzoo.models.detr.detector import Detector
from attnzoo.userdata.new import new_experiment
from attnzoo.userdata.read import read_folder


@pytest.fixture(scope="module")
def model() -> Detector:
    return small_model(CASES["refine"])


@pytest.fixture(scope="module")
def folder(model: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a model that is no preset."""
    return interop.export_huggingface(model, tmp_path_factory.mktemp("weights") / "hugging face")


def assert_loads(config: Any, weights: Path, expected: Detector) -> None:
    loaded = models.build(config, expected.num_classes)
    assert not interop.load(loaded, weights).missing
    state = expected.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_weights_of_a_hugging_face_folder(model: Detector, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They fitted no preset, and their config.json, which says what they are, was not read."""
    assert main(["weights", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"model: that of {folder / 'config.json'}" in lines
    assert "0 missing; 0 skipped" in lines[-1]
    settings = shlex.split(next(line for line in lines if line.startswith("load it: ")))[2:]
    assert settings[0] == "model.preset=deformable_detr_r50_refine"
    assert f"model.queries={QUERIES}" in settings
    assert settings.pop() == f"model.weights={folder}"
    assert_loads(Experiment(PACKAGED / "deformable_detr_coco.yaml", settings).config().model, folder, model)


def test_a_config_that_is_not_that_of_the_weights(folder: Path, tmp_path: Path) -> None:
    text = (folder / "config.json").read_text()
    assert f'"num_queries": {QUERIES}' in text
    (tmp_path / "config.json").write_text(text.replace('"encoder_layers": 2', '"encoder_layers": 1'))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    assert "does not fit: has " in str(describe_weights(tmp_path))
    (tmp_path / "config.json").write_text(text.replace("{", '{"activation_function": "gelu",', 1))
    with pytest.raises(UserError, match=f"{tmp_path}: config.json: activation_function = 'gelu': only 'relu'"):
        describe_weights(tmp_path)


def test_a_folder_of_the_hub(model: Detector, tmp_path: Path) -> None:
    """That of HubModel.save_pretrained, which transformers does not know."""
    hub = pytest.importorskip("attnzoo.interop.hub")
    hub.HubModel.of(model).save_pretrained(tmp_path)
    assert f"model: that of {tmp_path / 'config.json'}" in str(describe_weights(tmp_path))
    assert_loads(attnzoo.load_model(tmp_path).settings.model, tmp_path, model)


def test_a_folder_of_the_hub_predicts_as_the_run_it_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes had numbers, and images were resized as in the published recipe."""
    hub = pytest.importorskip("attnzoo.interop.hub")
    monkeypatch.chdir(tmp_path)
    loaded = attnzoo.load_model(create_untrained(), class_names=[f"digit {index}" for index in range(10)])
    of = hub.HubModel.of(loaded.model, loaded.class_names, loaded.settings.data.augment)
    of.save_pretrained(tmp_path / "hub")
    again = attnzoo.load_model(tmp_path / "hub")
    assert again.class_names == loaded.class_names
    image = Image.fromarray(torch.randint(256, (64, 64, 3), dtype=torch.uint8).numpy())
    assert torch.equal(again.preprocess(image), loaded.preprocess(image))
    assert torch.equal(again.predict(image, 0.0)[0].scores, loaded.predict(image, 0.0)[0].scores)
    with pytest.raises(UserError, match="class_names has 1 names, but the model has 10 classes"):
        hub.HubModel.of(loaded.model, ["one"])


def test_eval_of_published_weights_says_how_to_give_the_data(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["eval", str(folder)]) == 2
    assert capsys.readouterr().err.startswith("error: give the data set, as data.dataset.root=FOLDER (")


def test_weights_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    run = create_untrained()
    (checkpoint,) = (run / "checkpoints").iterdir()
    for path in (run, checkpoint):
        assert main(["weights", str(path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert f"model: that of {run / 'config.yaml'}" in lines
        assert "0 missing; 0 skipped" in lines[-1]


def test_new_experiment_from_a_hugging_face_folder(model: Detector, folder: Path, tmp_path: Path) -> None:
    created = new_experiment("mine", read_folder(coco(tmp_path / "data")), str(folder), folder=tmp_path)
    config: Any = Experiment(created.path).config()
    assert config.model.weights == str(folder)
    assert config.model.backbone.freeze == ["conv1", "layer1"]
    assert config.model.queries == QUERIES
    config.model.weights = None
    assert_loads(config.model, folder, model)
    with pytest.raises(UserError, match="a model of task: detection, but this data set is for task: classification"):
        new_experiment("other", read_folder(class_folders(tmp_path / "classes")), str(folder), folder=tmp_path)
    assert not (tmp_path / "other.yaml").exists()
