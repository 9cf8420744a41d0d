"""What `attnzoo data` reports: counts, sizes of boxes, and each kind of odd annotation and image."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.userdata import class_folders, coco, yolo

from attnzoo.__main__ import main
from attnzoo.userdata.check import DataReport, check_content
from attnzoo.userdata.read import read_folder
from attnzoo.userdata.text import report_text


def edit(root: Path, split: str, change: Any) -> None:
    path = root / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def check(root: Path) -> DataReport:
    return check_content(read_folder(root))


def problems(report: DataReport, split: str = "") -> dict[str, int]:
    found = report.splits[split].problems if split else report.problems
    return {problem.text: problem.count for problem in found}


def add_boxes(*boxes: list[float], category: int = 3, image: int = 1, crowd: int = 0) -> Any:
    def change(content: dict[str, Any]) -> None:
        for box in boxes:
            entry = {"id": 0, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
            content["annotations"].append(entry)

    return change


def test_counts_and_sizes(tmp_path: Path) -> None:
    root = coco(tmp_path / "data")
    edit(root, "train", add_boxes([0, 0, 40, 30], crowd=1))
    report = check(root)
    train = report.splits["train"]
    assert (train.images, train.boxes, train.crowds, train.images_without_boxes, train.most_boxes) == (5, 6, 1, 1, 2)
    assert train.classes == {"ant": 3, "bee": 3}
    assert (train.image_size, train.image_sizes) == ((40, 30), 5)
    stored, resized = train.box_sizes
    # shorter sides: 10, 8, 12, 16, 10, 30
    assert stored.below == pytest.approx({"4": 0, "8": 0, "16": 4 / 6, "32": 1, "64": 1}, abs=1e-3)
    assert stored.quantiles["50%"] == pytest.approx(15.0, abs=0.5)
    # resized to a shorter side of 800 pixels; the box of 8 pixels in 30 has 213
    assert resized.below == dict.fromkeys(("4", "8", "16", "32", "64"), 0.0)
    assert not report.has_errors
    assert problems(report) == {"classes with fewer than 10 training boxes": 2}


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ([5, 5, 0, 5], "boxes empty or outside their image, not trained on"),
        ([50, 5, 5, 5], "boxes empty or outside their image, not trained on"),
        ([35, 5, 10, 5], "boxes over the border of their image, which are clipped"),
        ([0.1, 0.1, 0.5, 0.5], "boxes under a pixel wide or high (fractions instead of pixels?)"),
        ([4, 6, 10, 12], "boxes annotated twice"),
        ([0, 0, 40, 30], "boxes that cover their whole image"),
        ([1, 1, 38, 1.5], "boxes over 20 times as long as wide"),
    ],
)
def test_odd_boxes(tmp_path: Path, box: list[float], text: str) -> None:
    root = coco(tmp_path / "data")
    assert not check(root).splits["train"].problems
    edit(root, "train", add_boxes(box))
    report = check(root)
    assert problems(report, "train") == {text: 1}
    assert "train0.png" in report.splits["train"].problems[0].first
    assert not report.has_errors
    shutil.rmtree(root)
    coco(root)
    edit(root, "train", add_boxes(box, crowd=1))
    assert not check(root).splits["train"].problems  # crowds may look like this


def test_images_that_training_refuses(tmp_path: Path) -> None:
    root = coco(tmp_path / "data")
    content = (root / "train" / "train0.png").read_bytes()
    (root / "train" / "train0.png").write_bytes(content[: len(content) // 2])
    (root / "train" / "train1.png").unlink()
    Image.new("RGB", (9, 9)).save(root / "train" / "train3.png")
    report = check(root)
    assert problems(report, "train") == {
        "missing images": 1,
        "images that cannot be read": 1,
        "images of another size than annotated": 1,
    }
    assert report.has_errors


def test_the_same_file_in_both_splits(tmp_path: Path) -> None:
    root = coco(tmp_path / "data")
    edit(root, "val", lambda content: content["images"][0].update(width=40, height=30))
    shutil.copy(root / "train" / "train0.png", root / "val" / "val0.png")
    report = check(root)
    (found,) = [problem for problem in report.problems if "also training" in problem.text]
    assert found.count == 1
    assert "val0.png" in found.first
    assert "train0.png" in found.first


def test_data_without_boxes_or_validation_images(tmp_path: Path) -> None:
    root = coco(tmp_path / "data")
    edit(root, "train", lambda content: content["annotations"].clear())
    edit(root, "val", lambda content: [content[key].clear() for key in ("images", "annotations")])
    report = check(root)
    assert (report.splits["train"].boxes, report.splits["train"].box_sizes, report.splits["val"].images) == (0, [], 0)
    assert problems(report) == {"classes without training boxes": 2}
    assert "training boxes, square root" not in report_text(report)


def test_class_folders(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "data", count=12)
    shutil.copy(root / "train" / "ant" / "ant0.png", root / "train" / "bee" / "copy.png")
    (root / "val" / "bee").rename(root / "val" / "wasp")
    report = check(root)
    assert report.splits["train"].classes == {"ant": 12, "bee": 13, "wasp": 0}
    assert problems(report, "train") == {"images that are copies of another one": 1, "images in two classes": 1}
    assert problems(report) == {"classes without training images": 1, "classes without validation images": 1}
    assert report.has_errors
    assert report.splits["train"].image_size == (40, 32)


def test_command_prints_text_json_and_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = yolo(tmp_path / "data", splits=("train",))
    assert main(["data", str(root), "--sheet", str(tmp_path / "sheet.png"), "--convert", str(tmp_path / "coco")]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{root}: YOLO format, 2 classes\n")
    assert "note: there is no validation split; `attnzoo new` makes one" in out
    assert f"written: {tmp_path / 'coco'}" in out
    assert Image.open(tmp_path / "sheet.png").size[0] > 500
    assert main(["data", str(tmp_path / "coco"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["layout"], report["classes"]) == ("coco", ["ant", "bee"])
    assert report["splits"]["train"]["images"] + report["splits"]["val"]["images"] == 5
    assert main(["data", str(root), "--convert", str(tmp_path / "coco")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["data", str(root), "--sheet", "sheet"]) == 2
    assert "ends in .png, .svg or .pdf" in capsys.readouterr().err
    (root / "images" / "train" / "train0.png").unlink()
    (root / "labels" / "train" / "train0.txt").unlink()
    (root / "images" / "train" / "train1.png").write_bytes(b"no image")
    assert main(["data", str(root)]) == 1
    assert "  train: ERROR images that cannot be read: 1, the first " in capsys.readouterr().out
