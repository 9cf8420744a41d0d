"""Odd names and numbers in users' data sets: the name of the data set, paths that lead out of it, NaN."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.userdata import class_folders, coco, voc, yolo

from attnzoo.__main__ import main
from attnzoo.errors import UserError
from attnzoo.userdata.content import Content
from attnzoo.userdata.read import read_folder


def one_file(root: Path) -> Path:
    """COCO format with one annotation file beside the images, of a name that tells no split."""
    coco(root, splits=("train",))
    shutil.move(root / "annotations" / "instances_train.json", root / "birds.json")
    (root / "annotations").rmdir()
    return root


def flat_classes(root: Path) -> Path:
    return class_folders(root, splits=())


def flat_yolo(root: Path) -> Path:
    """Images and labels in one folder, whose parents tell nothing."""
    yolo(root, splits=("train",), with_yaml=False)
    (root / "labels" / "train").rename(root / "labels" / "x")
    (root / "images" / "train").rename(root / "images" / "x")
    return root


def flat_voc(root: Path) -> Path:
    voc(root, splits=("train",))
    shutil.rmtree(root / "ImageSets")
    return root


@pytest.mark.parametrize("name", ["val_data", "test", "train", "images", "labels"])
@pytest.mark.parametrize("make", [one_file, flat_classes, flat_yolo, flat_voc, coco, voc, yolo])
def test_the_name_of_the_data_set_tells_nothing(tmp_path: Path, make: Callable[[Path], Path], name: str) -> None:
    """COCO format in a folder `val_data` had a validation split alone; in `images`, labels of YOLO were not found."""

    def found(content: Content) -> dict[str, list[int]]:
        return {split: part.class_counts(2).tolist() for split, part in content.splits.items()}

    expected = found(read_folder(make(tmp_path / "plain")))
    actual = found(read_folder(make(tmp_path / name / name)))
    assert actual == expected
    assert sum(actual["train"]) > 0


def test_labels_beside_the_images_of_a_folder_of_images(tmp_path: Path) -> None:
    root = yolo(tmp_path / "images" / "birds", splits=("train",))
    for label in (root / "labels" / "train").iterdir():
        shutil.move(label, root / "images" / "train" / label.name)
    assert read_folder(root).splits["train"].class_counts(2).tolist() == [3, 3]


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e300", "", "four"])
def test_voc_numbers_must_be_finite(tmp_path: Path, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = voc(tmp_path / "data")
    file = root / "Annotations" / "train0.xml"
    file.write_text(file.read_text().replace("<xmin>21</xmin>", f"<xmin>{number}</xmin>"))
    train = read_folder(root).splits["train"]
    assert [problem.text for problem in train.problems] == ["invalid annotations, left out"]
    assert train.problems[0].first.startswith(f"{file}: object 2: ")
    assert number in train.problems[0].first
    assert train.class_counts(2).tolist() == [3, 2]
    main(["data", str(root)])
    assert f"invalid annotations, left out: 1, the first {file}: object 2: " in capsys.readouterr().out


def test_voc_files_in_an_unknown_encoding(tmp_path: Path) -> None:
    root = voc(tmp_path / "data")
    file = root / "Annotations" / "train1.xml"
    file.write_text(f'<?xml version="1.0" encoding="utf-32"?>{file.read_text()}')
    assert read_folder(root).splits["train"].problems[0].first.startswith(f"{file}: ")


def change_file_name(root: Path, name: str) -> Path:
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name", ["/etc/x.png", "../val/val0.png"])
def test_images_outside_of_their_folder_are_reported(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = coco(tmp_path / "data")
    change_file_name(root, name)
    main(["data", str(root)])
    assert f"train: images outside of their folder: 1, the first {name!r}\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a\0b.png", ""])
def test_names_that_no_file_can_have(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "data")
    path = change_file_name(root, name)
    with pytest.raises(UserError, match=r"images\[0\]\.file_name = .*: expected a path, without NUL") as error:
        read_folder(root)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).isprintable()
    assert main(["data", str(root)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_outputs_of_data_are_checked_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "data")
    assert main(["data", str(root), "--sheet", str(tmp_path / "new" / "sheet.png")]) == 0
    assert (tmp_path / "new" / "sheet.png").is_file()
    capsys.readouterr()
    for sheet, message in ((str(tmp_path), "is a folder; name a file"), ("a.gif", "expected a name that ends in .png")):
        assert main(["data", str(root), "--sheet", sheet]) == 2
        assert capsys.readouterr().err.startswith(f"error: --sheet {sheet}: {message}")


def test_control_characters_of_names_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = class_folders(tmp_path / "data")
    for split in ("train", "val"):
        folders = sorted(path for path in (root / split).iterdir() if path.is_dir())
        folders[0].rename(root / split / "\x1b]0;title\x07")
        (root / split / "\x1b]0;title\x07" / "a\nnote: fine.png").write_bytes(b"")
    assert main(["data", str(root)]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b]0;title\x07" in out
    assert r"a\nnote: fine.png" in out
    assert main(["data", f"{root}\x1b"]) == 2
    assert r"data\x1b: no such folder" in capsys.readouterr().err
