"""Images that cannot be used, scores below the threshold, and arguments of wrong types: one clear line each."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.drawn import drawable, picture
from support.run_folder import create_untrained
from support.userdata import coco

import attnzoo
from attnzoo import interop
from attnzoo.__main__ import main
from attnzoo.data.annotations import read_annotations
from attnzoo.errors import UserError
from attnzoo.inference import pictures
from attnzoo.inference.drawing import draw_attentions
from attnzoo.inference.evaluate import evaluate
from attnzoo.inference.loaded import Detections, LoadedModel
from attnzoo.userdata.read import read_folder


@pytest.fixture(scope="module")
def detector() -> LoadedModel:
    return drawable("detr_scenes.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("use")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return create_untrained().absolute()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two good images, one that is too small for the model, and one that is damaged."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "d.png"):
        picture(folder / name)
    picture(folder / "b.png", width=3, height=2)
    (folder / "c.png").write_bytes(b"no image")
    return folder


def test_images_that_are_too_small(detector: LoadedModel) -> None:
    good, small = np.zeros((64, 64, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)
    found = dict(detector.predict_each([good, small, small, good], 0.0, batch_size=4))
    assert {index for index, each in found.items() if isinstance(each, Detections)} == {0, 3}
    assert "an image of 3 x 2 pixels, on which the model does not run: " in str(found[1])
    with pytest.raises(UserError, match="an image of 3 x 2 pixels") as error:
        detector.predict([good, small])
    assert error.value.__cause__ is not None


@pytest.mark.parametrize("command", ["predict", "draw"])
def test_one_bad_image_does_not_end_a_folder(
    command: str, run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / ("out" if command == "predict" else "out/page.html")
    assert main([command, str(run), str(photos), "-o", str(out)]) == 0
    printed = capsys.readouterr()
    assert f"skipped: {photos / 'b.png'}: an image of 3 x 2 pixels" in printed.err
    assert f"skipped: {photos / 'c.png'}: the image file is damaged" in printed.err
    assert "skipped 2 of 4 images" in printed.err
    assert printed.out.startswith("2 images: ")
    (photos / "a.png").unlink()
    (photos / "d.png").unlink()
    other = tmp_path / ("none" if command == "predict" else "none/page.html")
    assert main([command, str(run), str(photos), "-o", str(other)]) == 2
    assert capsys.readouterr().err.endswith("error: none of the images can be used; nothing was written\n")
    assert not (tmp_path / "none").exists()


def test_a_figure_in_the_folder_of_its_images_is_not_drawn(run: Path, photos: Path) -> None:
    for _ in range(2):
        assert main(["draw", str(run), str(photos), "-o", str(photos / "e.png"), "--best", "1"]) == 0


def test_a_file_name_that_is_no_text(run: Path, tmp_path: Path) -> None:
    """The title of its row, and a page, have text alone."""
    image = picture(tmp_path / "photo.png").rename(tmp_path / os.fsdecode(b"\xff.png"))
    images = [str(image), str(picture(tmp_path / "other.png"))]
    for name in ("page.html", "figure.svg"):
        assert main(["draw", str(run), *images, "-o", str(tmp_path / name), "--best", "1"]) == 0
    assert '"pictures":["\\ufffd.png",' in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert main(["predict", str(run), str(image), "-o", str(tmp_path / "out")]) == 0
    assert len(read_annotations(tmp_path / "out" / "predictions.json")["images"]) == 1


def test_images_of_the_same_name(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The JSON named a file that did not exist."""
    monkeypatch.chdir(tmp_path)
    images = ["odd/same.png", "odd/same.jpg", "b/same.png", "b/other.png"]
    for image in map(Path, images):
        image.parent.mkdir(exist_ok=True)
        picture(image)
    assert main(["predict", str(run), *images, "-o", "out"]) == 0
    names = [each["file_name"] for each in read_annotations(Path("out/predictions.json"))["images"]]
    assert names == ["odd/same.png", "same.jpg", "b/same.png", "other.png"]
    assert {path.name for path in Path("out").glob("*.jpg")} == {"same.jpg", "same-2.jpg", "same-3.jpg", "other.jpg"}
    assert main(["predict", str(run), "odd", "b", "-o", "out"]) == 0
    names = [each["file_name"] for each in read_annotations(Path("out/predictions.json"))["images"]]
    assert names == ["same.jpg", "odd/same.png", "other.png", "b/same.png"]


def test_category_ids_are_those_of_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They were class indices, for which the annotations of the data set have other ids."""
    monkeypatch.chdir(tmp_path)
    coco(Path("data"), ids=(3, 7))
    of_split = "{0}_annotations: annotations/instances_{0}.json, {0}_images: {0}"
    files = ", ".join(map(of_split.format, ("train", "val")))
    dataset = f"{{name: coco, root: data, {files}, labels: contiguous}}"
    arguments = ["predict", str(create_untrained(dataset, 2)), "data/val", "-o", "out", "--json", "--threshold", "0"]

    def predicted() -> tuple[dict[int, str], set[int]]:
        assert main(arguments) == 0
        content = read_annotations(Path("out/predictions.json"))
        names = {each["id"]: each["name"] for each in content["categories"]}
        return names, {each["category_id"] for each in content["annotations"]}

    assert predicted() == ({3: "ant", 7: "bee"}, {3, 7})
    assert not caplog.records
    Path("data/annotations/instances_val.json").unlink()
    assert predicted() == ({0: "class 0", 1: "class 1"}, {0, 1})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "category ids are class indices, as the data set of the run cannot be read (data.dataset" in caplog.text


def test_the_highest_score_is_said_when_nothing_passes(
    run: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (every,) = attnzoo.load_model(run).predict(photos / "a.png", threshold=0.0)
    assert isinstance(every, Detections)
    assert every.highest == every.scores.max()
    arguments = [str(run), str(photos / "a.png"), "-o", str(tmp_path / "out"), "--json"]
    assert main(["predict", *arguments, "--threshold", "0.99"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("1 image: 0 detections with a score of at least 0.99; the highest score is ")
    advised = line.rpartition("a threshold of ")[2].split()[0]
    assert main(["predict", *arguments, "--threshold", advised]) == 0
    assert not capsys.readouterr().out.startswith("1 image: 0 detections")
    assert main(["draw", str(run), str(photos / "a.png"), "-o", str(tmp_path / "a.png"), "--best", "1"]) == 0
    assert every.highest < 0.3
    assert f"the highest score is {every.highest:.2g}, in a.png: below the 0.3 of predict" in caplog.text


def test_options_are_named_as_they_were_typed(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out, folder = str(photos / "a.png"), str(tmp_path / "a.png"), str(tmp_path / "out")
    for arguments, message in [
        (["predict", str(run), image, "-o", folder, "--batch-size", "0"], "--batch-size 0: expected at least 1"),
        (["predict", str(run), image, "-o", folder, "--device", "gpu"], "--device 'gpu': expected auto, cpu"),
        (["predict", str(run), image, "-o", folder, "--preset", "detr_r5"], "--preset: unknown preset 'detr_r5'; did"),
        (["predict", str(run), image, "-o", image], "is a file; name a folder"),
        (["predict", str(run), image, "-o", folder, "--set", "model.quries=3"], "did you mean 'model.queries'"),
        (["draw", str(run), image, "-o", out, "--best", "0"], "--best 0: expected at least 1"),
        (["draw", str(run), image, "-o", out, "--layer", "decodr"], "--layer: unknown layer 'decodr'; did you mean"),
        (["draw", str(run), image, "-o", out, "--xy", "900,3"], "--xy 900,3: outside of the image of 64"),
        (["draw", str(run), image, "-o", out, "--bias"], "--bias: decoder.1: no deformed grid with a position bias"),
        (["predict", str(run), str(photos), "-o", str(photos)], f"outside of {photos}, where the output goes"),
        (["draw", str(run), image, "-o", str(tmp_path)], f"-o {tmp_path}: is a folder; name a file"),
        (["weights", str(photos / "c.png"), "--source", "dtr"], "c.png is not a state dict"),
    ]:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not Path(folder).exists()


def test_settings_on_the_command_line(run: Path, photos: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert main(["predict", str(run), str(photos), "-o", out, "--set", "max_detections=1", "--threshold", "0"]) == 0
    assert (tmp_path / "out" / "predictions.json").read_text().count('"score"') == 2


def test_the_range_of_16_bit_images_is_said_once(
    detector: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures._reader.cache_clear()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((64, 64), 4000, np.uint16)).save(tmp_path / name)
    detector.predict([tmp_path / "a.png", tmp_path / "b.png"])
    assert caplog.text.count("a 16-bit image with values up to 4000") == 1


def test_wrong_types_are_refused_at_the_door(detector: LoadedModel, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    image, module = str(tmp_path / "a.png"), torch.nn.Linear(1, 1)
    wrong: Any = 3
    calls: list[tuple[Any, str]] = [
        (lambda: detector.predict(wrong), "an int is not an image"),
        (lambda: detector.predict([image, wrong]), "an int is not an image"),
        (lambda: detector.predict(image, threshold=str(wrong)), "threshold = '3': expected a number"),  # type: ignore[arg-type]
        (lambda: detector.predict(image, batch_size=1.5), "batch_size = 1.5: expected"),  # type: ignore[arg-type]
        (lambda: detector.preprocess(wrong), "an int is not an image"),
        (lambda: detector.forward(wrong), "images = 3: expected a tensor"),
        (lambda: attnzoo.load_model(wrong), "path = 3: expected a path"),
        (lambda: attnzoo.load_model("a", overrides="model.dim=3"), "overrides = .*: expected a list"),
        (lambda: attnzoo.load_model("a", preset=wrong), "preset = 3: expected a name"),
        (lambda: attnzoo.load_model("a", device=wrong), "device = 3: expected a name"),
        (lambda: attnzoo.load_model("a", class_names="cat"), "class_names = 'cat': expected a list of names"),
        (lambda: interop.load(module, wrong), "weights = 3: expected a path or a state dict"),
        (lambda: interop.load(wrong, "b"), "model = 3: expected a torch module"),
        (lambda: interop.export_model(wrong, "a.onnx"), "model = 3: expected a detector"),
        (lambda: interop.export_model(module, wrong), "file = 3: expected a path"),
        (lambda: interop.export_huggingface(wrong, "a"), "model = 3: expected a detector"),
        (lambda: draw_attentions(wrong, image, "a.png"), "model = 3: expected what attnzoo.load_model returns"),
        (lambda: draw_attentions(detector, image, "a.png", best=str(wrong)), "best = '3'"),  # type: ignore[arg-type]
        (lambda: evaluate(wrong), "model = 3: expected what attnzoo.load_model returns"),
        (lambda: read_folder(wrong), "path = 3: expected a path"),
    ]
    for call, message in calls:
        with pytest.raises(TypeError, match=message):
            call()
