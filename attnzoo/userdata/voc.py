"""Folders in the format of Pascal VOC: an XML file per image, with boxes as 1-based pixel indices."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from attnzoo.data.annotations import is_outside
from attnzoo.errors import UserError
from attnzoo.userdata.content import (
    SUFFIXES,
    Content,
    Problem,
    Split,
    make_split,
    read_sizes,
    split_of,
    subfolders,
    use_test_as_val,
)

XML_ERRORS = (ET.ParseError, OSError, ValueError, LookupError)  # the last two for encodings
IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
LARGEST = 2.0**31  # pixels
Object = tuple[str, tuple[float, float, float, float], bool]  # class, x y w h, difficult


def find_voc(root: Path) -> list[Path]:
    """The XML files of annotations, at most four folders below `root`."""
    files = [path for folder in subfolders(root, 4) for path in sorted(folder.glob("*.xml"))]
    return files if files and _root_tag(files[0]) == "annotation" else []


def read_voc(root: Path, files: list[Path]) -> Content:
    """The data set of these files; splits from ImageSets/Main, else from the names of folders, else all "train".

    Classes are in alphabetical order. Objects marked difficult become crowds: neither trained on nor evaluated.
    """
    by_split: dict[str, list[Path]] = {}
    listed = _image_sets(root)
    for file in files:
        parts = (split_of(Path(part)) for part in file.relative_to(root).parts[:-1])
        split = listed.get(file.stem) if listed else next((part for part in parts if part), "train")
        if split is not None:
            by_split.setdefault(split, []).append(file)
    used, notes = use_test_as_val(by_split)
    if "train" not in used:
        raise UserError(f"{root}: no annotation file belongs to a training split")
    parsed = {split: [(file, *_parse(file)) for file in of_split] for split, of_split in used.items()}
    names = sorted({name for items in parsed.values() for *_, objects, _ in items for name, *_ in objects})
    if not names:
        raise UserError(f"{root}: the annotation files have no objects")
    splits = {split: _split(root, items, names) for split, items in parsed.items()}
    return Content(root, "voc", names, splits, notes)


def _root_tag(path: Path) -> str:
    try:
        return ET.parse(path).getroot().tag
    except XML_ERRORS:
        return ""


def _image_sets(root: Path) -> dict[str, str]:
    """The split of each image name; in `trainval.txt` alone all are "train"."""
    splits: dict[str, str] = {}
    for folder in (path for path in subfolders(root, 4) if path.parts[-2:] == ("ImageSets", "Main")):
        for name, split in (("test", "test"), ("trainval", "train"), ("train", "train"), ("val", "val")):
            if (file := folder / f"{name}.txt").is_file():
                splits |= dict.fromkeys(file.read_text(encoding="utf-8", errors="replace").split(), split)
    return splits


def _parse(path: Path) -> tuple[str, tuple[int, int], list[Object], list[str]]:
    """File name, (width, height) or zeros, objects, and what is invalid of one annotation file."""
    try:
        tree = ET.parse(path).getroot()
    except XML_ERRORS as error:
        return "", (0, 0), [], [f"{path}: {error}"]
    objects: list[Object] = []
    invalid = []
    for number, element in enumerate(tree.iter("object"), start=1):
        try:
            corners = [_number(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
            name = (element.findtext("name") or "").strip()
            if not name:
                raise ValueError("no name")
        except ValueError as error:
            invalid.append(f"{path}: object {number}: {error}")
            continue
        left, top, right, bottom = corners
        box = (left - 1, top - 1, right - left + 1, bottom - top + 1)
        objects.append((name, box, element.findtext("difficult", "0").strip() == "1"))
    try:
        size = int(tree.findtext("size/width", "0")), int(tree.findtext("size/height", "0"))
    except ValueError:
        size = (0, 0)
    return (tree.findtext("filename") or "").strip(), size, objects, invalid


def _number(element: ET.Element, path: str) -> float:
    """Raises ValueError for what is no finite number."""
    text = element.findtext(path, "").strip()
    value = float(text) if text else math.nan
    if not abs(value) < LARGEST:
        raise ValueError(f"{path} = {text!r}: expected a finite number")
    return value


def _split(
    root: Path, items: list[tuple[Path, str, tuple[int, int], list[Object], list[str]]], names: list[str]
) -> Split:
    paths = [_image(file, name) for file, name, *_ in items]
    sizes = np.array([size for _, _, size, *_ in items], dtype=np.int64).reshape(-1, 2)
    unknown = np.flatnonzero((sizes <= 0).any(1))
    sizes[unknown] = read_sizes([paths[i] for i in unknown])
    label_of = {name: label for label, name in enumerate(names)}
    rows = [
        (owner, label_of[name], box, difficult)
        for owner, (*_, objects, _) in enumerate(items)
        for name, box, difficult in objects
    ]
    invalid = [text for *_, texts in items for text in texts]
    problems = [Problem("invalid annotations, left out", len(invalid), invalid[0])] if invalid else []
    outside = [f"{name!r} of {file}" for file, name, *_ in items if is_outside(name)]
    if outside:
        problems.append(Problem("images outside of their folder", len(outside), outside[0]))
    return make_split(items[0][0].parent, paths[0].parent, paths, sizes, rows, problems=tuple(problems))


def _image(annotation: Path, name: str) -> Path:
    """The image of an annotation file: by the name in it, else by its own name with the suffix of an image."""
    candidates = list(_candidates(annotation, name))
    return next((path for path in candidates if path.is_file()), candidates[0])


def _candidates(annotation: Path, name: str) -> Iterator[Path]:
    folders = [annotation.parent, *(annotation.parent.parent / folder for folder in IMAGE_FOLDERS)]
    for file in [name, *(f"{annotation.stem}{suffix}" for suffix in SUFFIXES)]:
        if file:
            yield from (folder / file for folder in folders[::-1])
