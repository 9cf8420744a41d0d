"""Reads a data set in any of the known layouts."""

from pathlib import Path

import numpy as np

from attnzoo.errors import UserError
from attnzoo.paths import user_path, why_no_folder
from attnzoo.userdata.coco import find_annotations, read_coco
from attnzoo.userdata.content import (
    Content,
    Problem,
    Split,
    images_in,
    make_split,
    split_of,
    subfolders,
    use_test_as_val,
)
from attnzoo.userdata.voc import find_voc, read_voc
from attnzoo.userdata.yolo import find_yolo, read_yolo

KNOWN = (
    "COCO annotation files (*.json), class folders (train/CLASS/*.jpg or CLASS/*.jpg), YOLO (data.yaml, or images/ and "
    "labels/) or Pascal VOC (*.xml)"
)


def read_folder(folder: str | Path) -> Content:
    """The data set in a folder; its layout is told from its files. Images are not decoded.

    Raises UserError if there is none, or if its annotations cannot be read.
    """
    root = user_path(folder).absolute()
    if not root.is_dir():
        raise UserError(f"{root}: {why_no_folder(root)}; expected the folder of a data set")
    if annotations := find_annotations(root):
        return read_coco(root, annotations)
    if files := find_voc(root):
        return read_voc(root, files)
    if (source := find_yolo(root)) is not None:
        return read_yolo(root, source)
    if splits := _class_folders(root):
        return _read_class_folders(root, splits)
    raise UserError(f"{root}: no data set found; expected {KNOWN}")


def _class_folders(root: Path) -> dict[str, Path]:
    """The folder of each split that has class folders with images."""
    folders = [path for path in subfolders(root, 1) if path != root]
    splits = {split: path for path in folders if (split := split_of(path)) and _classes(path)}
    if "train" in splits:
        return splits
    return {"train": root} if _classes(root) else {}


def _classes(folder: Path) -> list[str]:
    """The names of the folders in it that have images."""
    return [path.name for path in subfolders(folder, 1) if path != folder and next(iter(_images(path)), None)]


def _images(folder: Path) -> list[Path]:
    return [path for below in subfolders(folder, 3) for path in images_in(below)]


def _read_class_folders(root: Path, splits: dict[str, Path]) -> Content:
    used, notes = use_test_as_val(splits)
    names = sorted({name for folder in used.values() for name in _classes(folder)})
    content = {split: _class_split(folder, names) for split, folder in used.items()}
    return Content(root, "class folders", names, content, notes)


def _class_split(folder: Path, names: list[str]) -> Split:
    labelled = [
        (path, label) for label, name in enumerate(names) if (folder / name).is_dir() for path in _images(folder / name)
    ]
    labels = np.array([label for _, label in labelled], dtype=np.int64)
    sizes = np.zeros((len(labelled), 2), dtype=np.int64)  # known when the images are read
    loose = images_in(folder)
    problems = (Problem("images beside the class folders, left out", len(loose), str(loose[0])),) if loose else ()
    paths = [path for path, _ in labelled]
    return make_split(folder, folder, paths, sizes, [], image_labels=labels, problems=problems)
