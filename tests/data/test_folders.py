"""Class folders with files that are no images, or damaged ones."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from attnzoo.data.build import build_dataset, dataset_fingerprint
from attnzoo.data.config import ClassificationDataConfig
from attnzoo.errors import UserError


def dataset(split: str = "train", **source: Any) -> Any:
    return build_dataset(ClassificationDataConfig(dataset=source), split)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, two images each."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                Image.effect_noise((30, 20), 50 + i).convert("RGB").save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def test_class_without_an_image_that_can_be_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its number, and those of the classes after it, stay; a class that cannot be trained is refused."""
    for i in range(2):
        (folder / "val" / "cat" / f"{i}.png").write_bytes(b"")
    val = dataset("val", name="folder", root=str(folder), on_error="skip")
    assert [val[i][1] for i in range(len(val))] == [1, 1]
    assert "no images of the classes ['cat']" in caplog.text
    for i in range(2):
        (folder / "train" / "cat" / f"{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"/train has no image that can be read of the classes \['cat'\]"):
        dataset(name="folder", root=str(folder), on_error="skip")


def test_damaged_images_are_skipped_with_a_count(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = (folder / "train" / "cat" / "1.png").read_bytes()
    (folder / "train" / "cat" / "1.png").write_bytes(whole[:200])  # its header is right
    os.mkfifo(folder / "train" / "dog" / "2.png")
    train = dataset(name="folder", root=str(folder), on_error="skip")
    assert [train[i][1] for i in range(len(train))] == [0, 1, 1]
    assert "2 of 5 images are skipped; the first: data.dataset: image 1" in caplog.text
    with pytest.raises(UserError, match=r"dog/2\.png.* not a regular file"):
        dataset(name="folder", root=str(folder))[4]
    for path in (folder / "val").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no image can be read"):
        dataset("val", name="folder", root=str(folder), on_error="skip")


def test_names_that_begin_with_a_dot_are_ignored(folder: Path) -> None:
    """As those that macOS and notebooks leave."""
    options = ClassificationDataConfig(dataset={"name": "folder", "root": str(folder)})
    before = dataset_fingerprint(options)
    for split in ("train", "val"):
        shutil.copytree(folder / "train" / "cat", folder / split / ".ipynb_checkpoints")
        (folder / split / "cat" / "._0.png").write_bytes(b"resource fork")
    train = dataset(name="folder", root=str(folder))
    assert train.num_classes == 2
    assert len(train) == 4
    assert dataset_fingerprint(options) == before
