"""Trained runs in use: load_model and predict."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import attnzoo
from attnzoo.__main__ import main
from attnzoo.data.annotations import read_annotations
from attnzoo.data.build import build_dataset
from attnzoo.engine.checkpoint import CheckpointManager, load_checkpoint
from attnzoo.errors import ExitCode, UserError
from attnzoo.inference.loaded import Classes, Detections, LoadedModel
from attnzoo.rundir.folder import RunFolder


@pytest.fixture(scope="module")
def detector(run: RunFolder) -> LoadedModel:
    return attnzoo.load_model(run.path)


@pytest.fixture(scope="module")
def classifier(classifier_run: RunFolder) -> LoadedModel:
    return attnzoo.load_model(classifier_run.path)


@pytest.fixture(scope="module")
def pixels(detector: LoadedModel) -> np.ndarray[Any, Any]:
    dataset = build_dataset(detector.settings.data, "val", detector.settings.seed)
    return np.asarray(Image.open(dataset.path(0)).convert("RGB"))


def test_run_gives_the_averaged_weights_of_its_best_step(detector: LoadedModel, run: RunFolder) -> None:
    best = CheckpointManager(run.checkpoints).best()
    assert best == detector.weights
    averaged = load_checkpoint(best)["ema"]
    state = detector.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in averaged.items() if tensor.ndim)
    assert not detector.model.training
    assert detector.task == "detection"
    assert detector.class_names == [str(digit) for digit in range(10)]
    assert detector.run == run.path


def test_a_checkpoint_of_a_run(run: RunFolder) -> None:
    (first,) = run.checkpoints.glob("step-00000020.*")
    state = attnzoo.load_model(first).model.state_dict()
    averaged = load_checkpoint(first)["ema"]
    assert all(torch.equal(state[name], tensor) for name, tensor in averaged.items() if tensor.ndim)


def test_loading_changes_no_random_state(run: RunFolder) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    attnzoo.load_model(run.path)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_of_every_form_give_the_same_boxes(
    detector: LoadedModel, pixels: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    tensor = torch.from_numpy(pixels.copy()).movedim(-1, 0)
    forms = [tmp_path / "a.png", str(tmp_path / "turned.png"), picture, pixels, pixels / 255, tensor, tensor / 255]
    results = detector.predict(forms, threshold=0.0)
    assert len(results) == len(forms)
    for result in results:
        assert isinstance(result, Detections)
        assert torch.equal(result.boxes, results[0].boxes)
        assert torch.equal(result.scores, results[0].scores)
        assert result.names == [detector.class_names[label] for label in result.labels.tolist()]
    (batch,) = detector.predict(tensor[None], threshold=0.0)
    assert torch.equal(batch.boxes, results[0].boxes)


def test_predictions_do_not_depend_on_the_batch(detector: LoadedModel) -> None:
    g = np.random.default_rng(0)
    images = [g.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((32, 48), (40, 40), (32, 48), (48, 32))]
    together = detector.predict(images, threshold=0.0, batch_size=3)
    for image, result in zip(images, together, strict=True):
        (alone,) = detector.predict(image, threshold=0.0)
        torch.testing.assert_close(result.boxes, alone.boxes, atol=1e-3, rtol=0)
        assert result.size == image.shape[:2]


def test_threshold_leaves_out_lower_scores(detector: LoadedModel, pixels: np.ndarray[Any, Any]) -> None:
    (every,) = detector.predict(pixels, threshold=0.0)
    middle = every.scores.median().item()
    (some,) = detector.predict(pixels, threshold=middle)
    assert torch.equal(some.scores, every.scores[every.scores >= middle])
    with pytest.raises(UserError, match=r"threshold = 1\.5: expected a number from 0 to 1"):
        detector.predict(pixels, threshold=1.5)


@torch.no_grad()
def test_classes_have_probabilities(classifier: LoadedModel) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    (found,) = classifier.predict(image)
    assert isinstance(found, Classes)
    expected = classifier.model(classifier.preprocess(image)[None]).softmax(-1)[0]
    assert torch.equal(found.probabilities, expected)
    assert found.labels[0] == expected.argmax()
    assert found.names[0] == classifier.class_names[int(expected.argmax())]
    assert torch.equal(found.scores, expected.sort(descending=True).values[:5])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"an array of shape \(3, 8, 8\) is not an image: expected \(h, w, 3\)"),
        (torch.zeros(8, 8, 3), r"a tensor of shape \(8, 8, 3\) is not an image: expected \(3, h, w\)"),
        (np.full((8, 8, 3), 255.0), r"floating-point pixels from 255 to 255: expected 0 to 1"),
        (np.zeros((8, 8, 3), np.int64), r"pixels of type int64: expected 8-bit integers"),
        ("nowhere.png", r"nowhere\.png: the image file is missing"),
    ],
)
def test_what_is_not_an_image(detector: LoadedModel, image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        detector.predict([image])


def test_bad_runs(run: RunFolder, tmp_path: Path) -> None:
    copy = tmp_path / "sweep" / "run"
    (copy / "checkpoints").mkdir(parents=True)
    shutil.copy(run.config, copy)
    with pytest.raises(UserError, match=r"run: no checkpoint; the run is pending"):
        attnzoo.load_model(copy)
    with pytest.raises(UserError, match=r"sweep: a folder of 1 run: give one of them \(run\)"):
        attnzoo.load_model(tmp_path / "sweep")
    best = CheckpointManager(run.checkpoints).best()
    assert best is not None
    content = best.read_bytes()
    (copy / "checkpoints" / best.name).write_bytes(content[:-9] + b"corrupted")
    with pytest.raises(UserError, match=r"corrupt checkpoint, checksum mismatch"):
        attnzoo.load_model(copy)
    (copy / "checkpoints" / best.name).write_bytes(content)
    with pytest.raises(UserError, match=r"3.* missing|missing key"):
        attnzoo.load_model(copy, overrides=["model.decoder.layers=3"])


def test_class_names_are_those_of_training_whatever_the_overrides(run: RunFolder, tmp_path: Path) -> None:
    names = ["data.dataset.name=coco", f"data.dataset.root={tmp_path}"]
    assert attnzoo.load_model(run.path, overrides=names).class_names[3] == "3"
    assert attnzoo.load_model(run.path, class_names=list("abcdefghij")).class_names[3] == "d"


@pytest.fixture
def photos(tmp_path: Path, run: RunFolder) -> Path:
    """Two images of digits, one in a folder of its own, a damaged one and a text."""
    settings = attnzoo.load_model(run.path).settings
    dataset = build_dataset(settings.data, "val", settings.seed)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    Image.open(dataset.path(0)).save(tmp_path / "photos" / "a.png")
    Image.open(dataset.path(1)).resize((64, 48)).save(tmp_path / "photos" / "more" / "a.webp")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def test_predict(run: RunFolder, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photos / "out"
    for _ in range(2):  # annotated pictures in the folder are not predicted again
        assert main(["predict", str(run.path), str(photos), "-o", str(out), "--threshold", "0.02"]) == 0
        printed = capsys.readouterr()
        assert "2 images: " in printed.out
        assert "broken.jpg: the image file is damaged" in printed.err
        assert "skipped 1 of 3 images" in printed.err
    content: Any = read_annotations(out / "predictions.json")  # it is a COCO instances file
    assert [image["file_name"] for image in content["images"]] == ["a.png", "more/a.webp"]
    assert [(image["width"], image["height"]) for image in content["images"]] == [(32, 32), (64, 48)]
    (expected,) = attnzoo.load_model(run.path).predict(photos / "a.png", threshold=0.02)
    found = [each for each in content["annotations"] if each["image_id"] == 1]
    assert [each["score"] for each in found] == pytest.approx(expected.scores.tolist(), abs=1e-4)
    assert [each["category_id"] for each in found] == expected.labels.tolist()
    x1, y1, x2, y2 = expected.boxes[0].tolist()
    assert found[0]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.02)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.jpg")} == {"a.jpg", "more/a.jpg"}
    assert Image.open(out / "a.jpg").size == (512, 512)


def test_predict_writes_what_is_asked_for(
    classifier_run: RunFolder, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(photos / "a.png")
    assert main(["predict", str(classifier_run.path), "--json", image, "-o", str(tmp_path / "json"), image]) == 0
    assert [path.name for path in (tmp_path / "json").iterdir()] == ["predictions.json"]
    (entry,) = json.loads((tmp_path / "json" / "predictions.json").read_text())["images"]
    (expected,) = attnzoo.load_model(classifier_run.path).predict(image)
    assert [each["name"] for each in entry["classes"]] == expected.names
    assert main(["predict", str(classifier_run.path), "--draw", image, "-o", str(tmp_path / "draw")]) == 0
    assert [path.name for path in (tmp_path / "draw").iterdir()] == ["a.jpg"]
    width, height = Image.open(tmp_path / "draw" / "a.jpg").size
    assert (width, height > 512) == (512, True)  # the classes are below the picture


def test_predict_errors(
    run: RunFolder,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out = str(run.path), str(tmp_path / "nothing")
    for arguments, message in [
        ([path, str(tmp_path / "nowhere")], "nowhere: no such image or folder"),
        ([path, str(photos / "broken.jpg")], "none of the images can be used; nothing was written"),
        ([path, str(photos), "--threshold", "2"], "--threshold 2.0: expected a number from 0 to 1"),
        ([str(tmp_path), str(photos)], "no weights in this folder"),
        ([path, str(run.checkpoints)], "no images in"),
    ]:
        assert main(["predict", *arguments, "-o", out]) == ExitCode.USER_ERROR
        lines = capsys.readouterr().err.splitlines()
        assert message in lines[-1]
        assert not Path(out).exists()


def test_images_are_never_overwritten(
    run: RunFolder, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.new("RGB", (40, 30)).save(folder / "a.jpg")
    before = (folder / "a.jpg").read_bytes()
    assert main(["predict", str(run.path), str(folder / "a.jpg"), "-o", str(folder)]) == ExitCode.USER_ERROR
    assert "which a picture could replace" in capsys.readouterr().err
    image = str(folder / "a.png")
    Image.new("RGB", (40, 30)).save(image)
    assert main(["draw", str(run.path), image, "-o", image]) == ExitCode.USER_ERROR
    assert "one of the images" in capsys.readouterr().err
    assert (folder / "a.jpg").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["a.jpg", "a.png"]


def test_a_config_that_changed_is_not_used(run: RunFolder, tmp_path: Path) -> None:
    """With another anchor size, the same weights gave 1.4 AP instead of 10.0 without a word."""
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    text = copy.config.read_text()
    assert "anchor_size:" in text
    copy.config.write_text(text.replace("anchor_size:", "anchor_size: 0.123  #", 1))
    with pytest.raises(UserError, match="corrupt"):
        attnzoo.load_model(copy.path)
