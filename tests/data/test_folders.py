"""Class folders with files that are no images, or damaged ones."""

import os
import shutil
import tempfile
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
    with pytest.raises(UserError, match=r"dog/2\.png.*\(not a regular file\)$"):
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
        shutil.copytree(folder / "train" / "dog", folder / split / "dog" / ".thumbnails")
    train = dataset(name="folder", root=str(folder))
    assert train.num_classes == 2
    assert len(train) == 4
    assert dataset_fingerprint(options) == before


NOBODY = 65534
SOURCES = ({"name": "folder"}, {"name": "folder", "on_error": "skip"}, {"name": "timm", "source": "", "num_classes": 2})


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_links_to_a_folder_above_are_refused(folder: Path, source: dict[str, Any], target: str) -> None:
    """Each doubles the images at least, and two never end."""
    for name in ("a", "b"):
        (folder / "train" / "dog" / name).symlink_to(target)
    with pytest.raises(UserError, match=r"train/dog/[ab] is a link to a folder that contains it"):
        dataset(**source, root=str(folder))


@pytest.mark.parametrize("source", SOURCES)
def test_links_to_other_folders_and_to_themselves(folder: Path, source: dict[str, Any]) -> None:
    """The images behind the one count, the other is none."""
    (folder / "train" / "dog").rename(folder / "dogs")
    (folder / "train" / "dog").symlink_to("../dogs")
    (folder / "train" / "itself").symlink_to("itself")
    assert len(dataset(**source, root=str(folder))) == 4


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ["train", "train/dog", "train/dog/more", "val/dog"])
def test_folders_that_may_not_be_listed_are_named(folder: Path, source: dict[str, Any], name: str) -> None:
    is_root = os.geteuid() == 0  # may list every folder
    with tempfile.TemporaryDirectory(dir="/tmp") as root:  # unlike the folders of pytest, everybody may read it
        shutil.copytree(folder, root, dirs_exist_ok=True)
        for path in ("", "train", "val"):
            (Path(root) / path).chmod(0o755)
        (Path(root) / "train" / "dog" / "more").mkdir()
        (Path(root) / name).chmod(0)
        os.seteuid(NOBODY if is_root else os.geteuid())
        try:
            with pytest.raises(UserError, match=f"{root}/{name}: Permission denied"):
                dataset("val", **source, root=root)
        finally:
            os.seteuid(0 if is_root else os.geteuid())
            (Path(root) / name).chmod(0o755)


def test_timm_does_not_wait_for_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "train" / "dog" / "2.png")
    with pytest.raises(UserError, match=r"dog/2\.png: not a regular file"):
        dataset(name="timm", source="", num_classes=2, root=str(folder))
