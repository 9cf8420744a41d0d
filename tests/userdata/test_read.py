"""The same data set in four layouts is read alike, and odd folders are refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.userdata import NAMES, SCENES, class_folders, coco, save_picture, voc, yolo

from attnzoo.errors import UserError
from attnzoo.userdata.content import Content, Problem
from attnzoo.userdata.read import read_folder


def boxes_of(content: Content, split: str) -> dict[str, list[tuple[str, list[float]]]]:
    """File name -> class and box of each object."""
    part = content.splits[split]
    found: dict[str, list[tuple[str, list[float]]]] = {path.name: [] for path in part.paths}
    for label, owner, box in zip(part.labels, part.owners, part.boxes.round(6).tolist(), strict=True):
        found[part.paths[owner].name].append((content.classes[label], box))
    return found


def expected(split: str) -> dict[str, list[tuple[str, list[float]]]]:
    return {
        f"{split}{i}.png": [(NAMES[label], list(map(float, box))) for label, *box in boxes]
        for i, (_, boxes) in enumerate(SCENES[split])
    }


@pytest.mark.parametrize(("make", "layout"), [(coco, "coco"), (yolo, "yolo"), (voc, "voc")])
def test_layouts_of_detection(tmp_path: Path, make: Callable[[Path], Path], layout: str) -> None:
    content = read_folder(make(tmp_path / "data"))
    assert (content.layout, content.classes) == (layout, NAMES)
    for split in ("train", "val"):
        assert boxes_of(content, split) == expected(split)
        assert content.splits[split].sizes.tolist() == [list(size) for size, _ in SCENES[split]]
        assert not content.splits[split].problems
        assert all(path.is_file() for path in content.splits[split].paths)


def test_class_folders_with_and_without_splits(tmp_path: Path) -> None:
    content = read_folder(class_folders(tmp_path / "split"))
    assert (content.layout, content.classes, set(content.splits)) == ("class folders", NAMES, {"train", "val"})
    assert content.splits["val"].class_counts(2).tolist() == [6, 6]
    root = class_folders(tmp_path / "flat", splits=())
    save_picture(root / "loose.png", (9, 9), 0)
    flat = read_folder(root)
    assert (flat.classes, set(flat.splits)) == (NAMES, {"train"})
    loose = Problem("images beside the class folders, left out", 1, str(root / "loose.png"))
    assert flat.splits["train"].problems == (loose,)


def test_coco_with_annotations_beside_the_images(tmp_path: Path) -> None:
    """As Roboflow exports it: train/_annotations.coco.json, valid/…"""
    root = coco(tmp_path / "data")
    for split, name in (("train", "train"), ("val", "valid")):
        (root / split).rename(root / name)
        (root / "annotations" / f"instances_{split}.json").rename(root / name / "_annotations.coco.json")
    (root / "annotations").rmdir()
    content = read_folder(root)
    assert content.splits["val"].image_dir == root / "valid"
    assert boxes_of(content, "val") == expected("val")


def test_one_annotation_file_of_any_name_is_the_training_split(tmp_path: Path) -> None:
    root = coco(tmp_path / "data", splits=("train",))
    (root / "annotations" / "instances_train.json").rename(root / "birds.json")
    (root / "captions.json").write_text('{"images": [], "annotations": []}')
    content = read_folder(root)
    assert set(content.splits) == {"train"}
    assert boxes_of(content, "train") == expected("train")


def test_test_split_takes_the_place_of_a_missing_validation_split(tmp_path: Path) -> None:
    root = coco(tmp_path / "data")
    (root / "annotations" / "instances_val.json").rename(root / "annotations" / "instances_test.json")
    content = read_folder(root)
    assert boxes_of(content, "val") == expected("val")
    assert content.notes == ("there is no validation split; the test split is used as one",)


def test_yolo_without_yaml_polygons_and_invalid_lines(tmp_path: Path) -> None:
    root = yolo(tmp_path / "data", splits=("train",), with_yaml=False)
    (root / "classes.txt").write_text("ant\nbee\n")
    labels = root / "labels" / "train"
    (labels / "train0.txt").write_text("1 0.25 0.5 0.75 0.5 0.5 0.9\n5 0.5 0.5 0.1 0.1\nx\n1 0.5\n0 20 10 5 5\n")
    (labels / "train2.txt").unlink()
    (labels / "train3.txt").write_bytes(b"\xff\xfe\n")
    content = read_folder(root)
    assert content.classes == NAMES
    assert boxes_of(content, "train")["train0.png"] == [("bee", [10.0, 15.0, 20.0, 12.0])]  # of 40 x 30 pixels
    problems = {problem.text: problem.count for problem in content.splits["train"].problems}
    assert problems == {"invalid lines of label files, left out": 5, "images without a label file": 1}


@pytest.mark.parametrize("keys", ["path: ~/data\ntrain: images/train\n", "train: ~/data/images/train\n"])
def test_yolo_paths_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    yolo(tmp_path / "data", with_yaml=False)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "data.yaml").write_text(f"{keys}names: [ant, bee]\n")
    assert boxes_of(read_folder(tmp_path / "elsewhere"), "train") == expected("train")


def test_yolo_names_a_test_split_that_is_not_there(tmp_path: Path) -> None:
    """As exports of Roboflow do, with folders beside data.yaml."""
    root = yolo(tmp_path / "data")
    lines = [f"{split}: ../images/{folder}" for split, folder in (("train", "train"), ("val", "val"), ("test", "test"))]
    (root / "data.yaml").write_text("\n".join([*lines, "names: [ant, bee]", ""]))
    content = read_folder(root)
    assert set(content.splits) == {"train", "val"}
    (note,) = content.notes
    assert note.startswith("the test split is left out: ")
    (root / "data.yaml").write_text("\n".join([lines[0], "val: ../images/valid", "names: [ant, bee]", ""]))
    with pytest.raises(UserError, match=r"there is no .*/images/valid"):
        read_folder(root)


def test_yolo_boxes_refer_to_the_upright_image(tmp_path: Path) -> None:
    root = yolo(tmp_path / "data")
    image = root / "images" / "train" / "train0.png"
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees: 30 x 40 as stored
    save_picture(image, (30, 40), 0, exif=exif)
    content = read_folder(root)
    assert content.splits["train"].sizes[0].tolist() == [40, 30]
    assert boxes_of(content, "train")["train0.png"] == expected("train")["train0.png"]


def test_voc_difficult_objects_and_broken_files(tmp_path: Path) -> None:
    root = voc(tmp_path / "data")
    file = root / "Annotations" / "train0.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    (root / "Annotations" / "train1.xml").write_text("<annotation>")
    train = read_folder(root).splits["train"]
    assert train.crowds.tolist() == [True, *[False] * 4]
    assert [problem.count for problem in train.problems] == [1]
    assert train.sizes[1].tolist() == [24, 36]  # from the image


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: None, "no data set found; expected COCO annotation files"),
        (lambda root: coco(root / "x").rename(root / "y"), ""),
        (lambda root: (root / "train.json").write_text("{}"), "no data set found"),
    ],
)
def test_folders_without_data(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    change(tmp_path)
    if message:
        with pytest.raises(UserError, match=message):
            read_folder(tmp_path)
    else:
        assert read_folder(tmp_path).layout == "coco"  # one folder below


def test_two_files_of_a_split_are_an_error(tmp_path: Path) -> None:
    root = coco(tmp_path / "data")
    (root / "annotations" / "instances_train_old.json").write_text(
        (root / "annotations" / "instances_train.json").read_text()
    )
    with pytest.raises(UserError, match="two annotation files of the split 'train'"):
        read_folder(root)
    with pytest.raises(UserError, match="no such folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(UserError, match=r"_old\.json: is a file, not a folder"):
        read_folder(root / "annotations" / "instances_train_old.json")


def test_splits_with_different_categories_are_an_error(tmp_path: Path) -> None:
    root = coco(tmp_path / "data")
    path = root / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["categories"][1]["name"] = "wasp"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="different categories"):
        read_folder(root)
    assert np.isfinite(read_folder(coco(tmp_path / "other")).splits["train"].boxes).all()
