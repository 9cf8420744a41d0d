"""Folders in COCO format: annotation files, their splits and their images."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from attnzoo.data.annotations import names_outside, read_annotations
from attnzoo.errors import UserError
from attnzoo.userdata.content import Content, Problem, Split, make_split, split_of, subfolders, use_test_as_val

SAMPLE = 20  # file names that are looked for in a folder of images


def find_annotations(root: Path) -> dict[str, Path]:
    """The COCO instances file of each split, at most two folders below `root`; empty without any.

    Those of deeper folders only if there are none above: a converted data set links to the folder of the original.
    A file of unknown split is "train" if it is the only one. Raises UserError for two files of a split.
    """
    files = _coco_files(root, 1) or _coco_files(root, 2)
    found: dict[str, Path] = {}
    for path in files:
        split = split_of(path.with_suffix("")) or _split_of_folder(root, path.parent) or "train"
        if split in found:
            names = f"{found[split].relative_to(root)} and {path.relative_to(root)}"
            raise UserError(f"{root}: two annotation files of the split {split!r}: {names}; move one away")
        found[split] = path
    return found


def _split_of_folder(root: Path, folder: Path) -> str | None:
    """The split that a folder below `root` tells; the name of the data set itself tells none."""
    return None if folder == root else split_of(folder)


def read_coco(root: Path, annotations: dict[str, Path]) -> Content:
    """The data set of these annotation files. Raises UserError if one is invalid or they differ in categories."""
    annotations, notes = use_test_as_val(annotations)
    if "train" not in annotations:
        raise UserError(f"{root}: there is no training split, only {', '.join(map(str, annotations.values()))}")
    contents = {split: read_annotations(path) for split, path in annotations.items()}
    names = _categories(contents["train"])
    for split, content in contents.items():
        if _categories(content) != names:
            files = f"{annotations['train']} and {annotations[split]}"
            raise UserError(f"{root}: {files} have different categories")
    label_of = {category: label for label, category in enumerate(names)}
    splits = {split: _split(root, annotations[split], content, label_of, split) for split, content in contents.items()}
    return Content(root, "coco", list(names.values()), splits, notes, tuple(names))


def _coco_files(root: Path, depth: int) -> list[Path]:
    files = [path for folder in subfolders(root, depth) for path in sorted(folder.glob("*.json"))]
    files = [path for path in files if path.name.startswith("instances")] or files
    return [path for path in files if _is_coco(path)]


def _is_coco(path: Path) -> bool:
    if not path.is_file():  # reading a pipe never ends
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and all(
        isinstance(content.get(section), list) for section in ("images", "annotations", "categories")
    )


def _categories(content: dict[str, Any]) -> dict[int, str]:
    return {c["id"]: str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])}


def _split(root: Path, path: Path, content: dict[str, Any], label_of: dict[int, int], split: str) -> Split:
    images = sorted(content["images"], key=lambda image: image["id"])
    index_of = {image["id"]: index for index, image in enumerate(images)}
    folder = _image_folder(root, path, [image["file_name"] for image in images[:SAMPLE]], split)
    rows = [
        (index_of[a["image_id"]], label_of[a["category_id"]], tuple(map(float, a["bbox"])), bool(a["iscrowd"]))
        for a in content["annotations"]
    ]
    sizes = np.array([(image["width"], image["height"]) for image in images], dtype=np.int64).reshape(-1, 2)
    paths = [folder / image["file_name"] for image in images]
    outside = names_outside(content)
    problems = (Problem("images outside of their folder", len(outside), repr(outside[0])),) if outside else ()
    return make_split(path, folder, paths, sizes, rows, raw=content, problems=problems)  # type: ignore[arg-type]


def _image_folder(root: Path, annotations: Path, names: list[str], split: str) -> Path:
    """The folder that has most of the files; of several, one whose name is like the split or the annotation file."""

    def rank(folder: Path) -> tuple[int, bool, bool]:
        found = sum((folder / name).is_file() for name in names)
        return found, folder.name in annotations.stem, _split_of_folder(root, folder) == split

    return max([annotations.parent, *subfolders(root, 3)], key=rank)
