"""A folder in place of a file, a file in place of a folder, and links to nowhere are called what they are."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from attnzoo.__main__ import main
from attnzoo.attention.plugins import load_plugin
from attnzoo.config.files import find_experiment, find_profile, load_layers
from attnzoo.contract.command import check_attentions
from attnzoo.data.classification import ImageFolderSpec
from attnzoo.data.coco import CocoSpec
from attnzoo.errors import UserError
from attnzoo.inference.image_files import find_images
from attnzoo.models.weights import files as weights_files
from attnzoo.paths import real_path
from attnzoo.report.runs import find_runs
from attnzoo.report.status import sweep_status
from attnzoo.userdata.read import read_folder

FOLDER = "is a folder, not a file"
FILE = "is a file, not a folder"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "folder.yaml", "folder.py"):
        Path(folder).mkdir()
    Path("file").write_text("x")
    Path("base.yaml").write_text(f"base: {tmp_path}/folder\n")
    Path("bases.yaml").write_text("base: [folder]\n")
    Path("pipe.yaml").write_text("base: pipe\n")
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    Path("loop.py").symlink_to("loop.py")
    Path("loop.yaml").symlink_to("loop.yaml")
    Path("circle.yaml").write_text("base: loop.yaml\n")
    return tmp_path


def coco(**options: str) -> CocoSpec:
    files = dict.fromkeys(("train_annotations", "val_annotations"), "file")
    return CocoSpec(**{"root": ".", "train_images": "folder", "val_images": "folder"} | files | options)  # type: ignore[arg-type]


CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "experiment": (lambda: find_experiment("folder"), "folder: expected an experiment file, not a folder"),
    "pipe as experiment": (lambda: find_experiment("pipe"), "^pipe: not a regular file$"),
    "loop as experiment": (lambda: find_experiment("loop.py"), r"^loop\.py: no such experiment file"),
    "base": (lambda: load_layers(Path("base.yaml")), rf"base\.yaml: base: .*/folder: {FOLDER}"),
    "bases": (lambda: load_layers(Path("bases.yaml")), rf"bases\.yaml: base: .*/folder: {FOLDER}"),
    "pipe as base": (lambda: load_layers(Path("pipe.yaml")), "base: .*/pipe: not a regular file"),
    "loop as base": (lambda: load_layers(Path("circle.yaml")), r"no such file 'loop.yaml'(?!.*mean 'loop.yaml')"),
    "profile": (lambda: find_profile("folder.yaml", Path("x.yaml")), rf"slurm\.profile: 'folder\.yaml': {FOLDER}"),
    "plugin": (lambda: load_plugin("folder.py"), rf"folder\.py': {FOLDER}"),
    "plugin that is a loop": (lambda: load_plugin("loop.py"), r"loop\.py': no such file"),
    "checked plugin that is a loop": (lambda: check_attentions("loop.py", [], False), r"loop\.py': no such file"),
    "pipe as weights": (lambda: weights_files.find("pipe"), "pipe: not a regular file"),
    "annotations": (lambda: coco(val_annotations="folder"), f"val_annotations: folder: {FOLDER}"),
    "images": (lambda: coco(train_images="file"), f"train_images: file: {FILE}"),
    "root": (lambda: coco(root="file"), f"root: file: {FILE}"),
    "class folders": (lambda: ImageFolderSpec(root="file").check(), "root: file/train: no such folder"),
    "class folders of a split": (lambda: ImageFolderSpec(root=".", train="file").check(), f"root: file: {FILE}"),
    "data set": (lambda: read_folder("file"), f"file: {FILE}; expected the folder of a data set"),
    "runs": (lambda: find_runs([Path("file")]), f"file: {FILE}; expected a folder of runs"),
    "sweep": (lambda: sweep_status(Path("file")), f"file: {FILE}; expected the folder of a sweep"),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_there_instead_is_said(name: str) -> None:
    call, message = CALLS[name]
    with pytest.raises(UserError, match=message):
        call()


def test_unreadable_images_of_a_folder_are_named_and_not_left_out(here: Path) -> None:
    """A link that leads nowhere, as to data that was not downloaded, was left out without a word."""
    images = here / "images"
    images.mkdir()
    (images / "a.png").symlink_to("nowhere.png")
    (images / "b.png").symlink_to("b.png")
    os.mkfifo(images / "c.png")
    assert [image.name for image in find_images([images])] == ["a.png", "b.png", "c.png"]
    assert [image.name for image in find_images([images], exclude=Path("loop"))] == ["a.png", "b.png", "c.png"]


def test_a_loop_has_a_path() -> None:
    assert real_path("loop") == Path.cwd() / "loop"


COMMANDS = [
    ["predict", "x", "", "-o", "out"],
    ["predict", "x", "a.png", "-o", ""],
    ["draw", "x", "a.png", "-o", ""],
    ["cancel", ""],
    ["status", ""],
    ["compare", ""],
    ["data", ""],
    ["new", "x", "--data", ""],
    ["export", "x", "-o", ""],
    ["export", "", "-o", "x.onnx"],
    ["eval", ""],
    ["weights", ""],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command))
def test_an_empty_path_is_refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It was the current folder, as for `attnzoo cancel "$FOLDER"` with a variable that is not set."""
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    assert "invalid path value: ''" in capsys.readouterr().err.splitlines()[-1]
