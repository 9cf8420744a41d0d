"""Read and validate COCO annotation files, working around pycocotools bugs."""

import contextlib
import io
import json
import os
import reprlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO

from attnzoo.data.hashes import FileVersion, file_version
from attnzoo.errors import UserError


class Field(NamedTuple):
    """Valid values of a key."""

    is_valid: Callable[[Any], bool]
    expected: str
    required: bool = True


def _is_int64(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**63  # false for NaN


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_path(value: Any) -> bool:
    """Whether a file can have this name: not empty, without NUL, in the encoding of file names."""
    try:
        return isinstance(value, str) and value != "" and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _is_text(value: str) -> bool:
    try:
        return value.encode() is not None
    except UnicodeEncodeError:
        return False


ID = Field(_is_int64, "an integer")
SIZE = Field(lambda value: _is_int64(value) and value >= 1, "an integer number of pixels, at least 1")
FIELDS = {
    "images": {
        "id": ID,
        "file_name": Field(_is_path, "a path, without NUL or lone surrogates"),
        "width": SIZE,
        "height": SIZE,
    },
    "annotations": {
        "image_id": ID,
        "category_id": ID,
        "bbox": Field(_is_box, "four finite numbers x, y, width, height"),
        "iscrowd": Field(lambda value: value in (0, 1), "0 or 1", required=False),
        "area": Field(_is_number, "a finite number", required=False),
    },
    "categories": {
        "id": Field(lambda value: _is_int64(value) and value >= 0, "a non-negative integer"),
        "name": Field(lambda value: _is_text(str(value)), "a name, without lone surrogates"),
    },
}


class Summary(NamedTuple):
    """What data sets need to know before their images are read.

    `categories`: names by id. `num_objects`: number of boxes at least partly inside their image, without crowds.
    `image_size`: the most common (h, w) in pixels; None without images.
    """

    categories: dict[int, str]
    num_objects: int
    image_size: tuple[int, int] | None


class Objects(NamedTuple):
    """Annotations without crowds, the image of each, and the shorter side (n,) in pixels of its box inside it."""

    annotations: list[dict[str, Any]]
    images: list[dict[str, Any]]
    shorter_sides: NDArray[np.float32]


_SUMMARIES: dict[FileVersion, Summary] = {}


def read_summary(path: Path) -> Summary:
    """What an annotation file has; a process reads an unchanged file once. Raises UserError as `read_annotations`."""
    version = file_version(path)
    if version not in _SUMMARIES:
        _SUMMARIES[version] = _summarize(read_annotations(path))
    return _SUMMARIES[version]


def _summarize(content: dict[str, Any]) -> Summary:
    categories = {category["id"]: str(category["name"]) for category in content["categories"]}
    sizes = Counter((image["height"], image["width"]) for image in content["images"]).most_common(1)
    num_objects = int((find_objects(content).shorter_sides > 0).sum())
    return Summary(categories, num_objects, sizes[0][0] if sizes else None)


def find_objects(content: dict[str, Any]) -> Objects:
    """The objects of validated annotations. A side that is not positive: the box is empty or outside its image."""
    images = {image["id"]: image for image in content["images"]}
    annotations = [annotation for annotation in content["annotations"] if not annotation["iscrowd"]]
    owners = [images[annotation["image_id"]] for annotation in annotations]
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float32).reshape(-1, 4)
    limits = np.array([(image["width"], image["height"]) for image in owners], dtype=np.float32).reshape(-1, 2)
    start = np.minimum(np.maximum(boxes[:, :2], 0), limits)
    end = np.minimum(np.maximum(boxes[:, :2] + boxes[:, 2:], 0), limits)
    return Objects(annotations, owners, (end - start).min(1, initial=np.inf))


def read_annotations(path: Path) -> dict[str, Any]:
    """The validated content of a COCO instances file, with defaults filled in.

    Defaults: `iscrowd` 0, `area` that of the box. Annotation ids are renumbered from 1: pycocotools treats id 0 as
    unmatched and loses annotations with duplicate ids. Raises UserError, naming file, entry and key, for an invalid
    file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # with or without a byte-order mark
    except FileNotFoundError:
        raise UserError(f"{path}: the annotation file is missing") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8 ({error.reason} at byte {error.start})") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a COCO instances file (images, annotations, categories)")
    for section, fields in FIELDS.items():
        if not isinstance(content.get(section), list):
            raise UserError(f"{path}: not a COCO instances file: it has no list of {section}")
        for i, entry in enumerate(content[section]):
            _check_entry(f"{path}: {section}[{i}]", entry, fields)
    _check_info(path, content.get("info", {}))
    _check_references(path, content)
    _check_boxes(path, content["annotations"])
    for i, annotation in enumerate(content["annotations"], start=1):
        annotation["id"] = i
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    _SUMMARIES[file_version(path)] = _summarize(content)
    return content


def _check_entry(prefix: str, entry: Any, fields: dict[str, Field]) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{prefix} = {reprlib.repr(entry)}: expected a mapping")
    for key, field in fields.items():
        if key not in entry:
            if field.required:
                raise UserError(f"{prefix} has no {key!r}")
        elif not field.is_valid(entry[key]):
            raise UserError(f"{prefix}.{key} = {reprlib.repr(entry[key])}: expected {field.expected}")


def _check_info(path: Path, info: Any) -> None:
    if not isinstance(info, dict):
        raise UserError(f"{path}: info = {reprlib.repr(info)}: expected a mapping")
    areas = info.get("area_thresholds", [0, 0])
    if not (isinstance(areas, list) and len(areas) == 2 and all(map(_is_number, areas)) and 0 <= areas[0] <= areas[1]):
        raise UserError(
            f"{path}: info.area_thresholds = {reprlib.repr(areas)}: expected two ascending non-negative numbers"
        )


def _check_references(path: Path, content: dict[str, Any]) -> None:
    ids = {}
    for section in ("images", "categories"):
        ids[section] = {entry["id"] for entry in content[section]}
        if len(ids[section]) < len(content[section]):
            raise UserError(f"{path}: duplicate id in {section}")
    if not ids["categories"]:
        raise UserError(f"{path}: categories: expected at least one")
    for i, annotation in enumerate(content["annotations"]):
        for section, key in (("images", "image_id"), ("categories", "category_id")):
            if annotation[key] not in ids[section]:
                raise UserError(f"{path}: annotations[{i}].{key} = {annotation[key]!r} does not exist in {section}")


def _check_boxes(path: Path, annotations: list[dict[str, Any]]) -> None:
    for i, annotation in enumerate(annotations):
        if min(annotation["bbox"][2:]) < 0:
            prefix = f"{path}: annotations[{i}] with id {annotation.get('id')!r}"
            raise UserError(f"{prefix}: bbox = {annotation['bbox']}: negative width or height")


def names_outside(content: dict[str, Any]) -> list[str]:
    """The file names that lead out of the image folder, `/etc/x` or `../x`; links are not followed."""
    return [name for name in dict.fromkeys(image["file_name"] for image in content["images"]) if is_outside(name)]


def is_outside(name: str) -> bool:
    """Whether a file name, relative to a folder, leads out of it; links are not followed."""
    path = os.path.normpath(name)
    return os.path.isabs(path) or path.split(os.sep)[0] == os.pardir


def to_coco(content: dict[str, Any]) -> COCO:
    """The content as an indexed pycocotools COCO, with pycocotools' output suppressed."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
