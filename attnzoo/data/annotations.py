"""Reading COCO annotation files, and mending what pycocotools silently gets wrong."""

import contextlib
import io
import json
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pycocotools.coco import COCO

from attnzoo.errors import UserError


class Field(NamedTuple):
    """What a key of an entry may hold."""

    fits: Callable[[Any], bool]
    expected: str
    needed: bool = True


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**63  # false for NaN


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


ID = Field(_is_whole, "a whole number")
SIZE = Field(lambda value: _is_whole(value) and value >= 1, "a whole number of pixels, at least 1")
FIELDS = {
    "images": {
        "id": ID,
        "file_name": Field(lambda value: isinstance(value, str), "a path"),
        "width": SIZE,
        "height": SIZE,
    },
    "annotations": {
        "image_id": ID,
        "category_id": ID,
        "bbox": Field(_is_box, "four finite numbers x, y, width, height"),
        "iscrowd": Field(lambda value: value in (0, 1), "0 or 1", needed=False),
        "area": Field(_is_number, "a finite number", needed=False),
    },
    "categories": {
        "id": Field(lambda value: _is_whole(value) and value >= 0, "a whole number from 0"),
        "name": Field(lambda value: True, "a name"),
    },
}


def read_annotations(path: Path) -> dict[str, Any]:
    """The content of a COCO instances file, checked and complete.

    Optional fields get their defaults: `iscrowd` 0, `area` that of the box. Annotations are numbered anew from 1,
    because pycocotools takes a match with annotation 0 for no match, and loses annotations that share an id. Raises
    UserError naming the file, the entry and its key for whatever else is not as the format says.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: the annotation file is missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a COCO instances file, which holds images, annotations and categories")
    for section, fields in FIELDS.items():
        if not isinstance(content.get(section), list):
            raise UserError(f"{path}: not a COCO instances file: it has no list of {section}")
        for number, entry in enumerate(content[section]):
            _check_entry(f"{path}: {section}[{number}]", entry, fields)
    _check_info(path, content.get("info", {}))
    _check_references(path, content)
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation["id"] = number
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    return content


def _check_entry(place: str, entry: Any, fields: dict[str, Field]) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{place} = {reprlib.repr(entry)}: expected keys and values")
    for key, field in fields.items():
        if key not in entry:
            if field.needed:
                raise UserError(f"{place} has no {key!r}")
        elif not field.fits(entry[key]):
            raise UserError(f"{place}.{key} = {reprlib.repr(entry[key])}: expected {field.expected}")


def _check_info(path: Path, info: Any) -> None:
    if not isinstance(info, dict):
        raise UserError(f"{path}: info = {reprlib.repr(info)}: expected keys and values")
    areas = info.get("area_thresholds", [0, 0])
    if not (isinstance(areas, list) and len(areas) == 2 and all(map(_is_number, areas)) and 0 <= areas[0] <= areas[1]):
        raise UserError(
            f"{path}: info.area_thresholds = {reprlib.repr(areas)}: expected two numbers from 0, the smaller first"
        )


def _check_references(path: Path, content: dict[str, Any]) -> None:
    ids = {}
    for section in ("images", "categories"):
        ids[section] = {entry["id"] for entry in content[section]}
        if len(ids[section]) < len(content[section]):
            raise UserError(f"{path}: two of the {section} have the same id")
    if not ids["categories"]:
        raise UserError(f"{path}: categories: expected at least one")
    for number, annotation in enumerate(content["annotations"]):
        for section, key in (("images", "image_id"), ("categories", "category_id")):
            if annotation[key] not in ids[section]:
                raise UserError(f"{path}: annotations[{number}].{key} = {annotation[key]!r} is none of the {section}")


def to_coco(content: dict[str, Any]) -> COCO:
    """The content as an indexed pycocotools COCO, made without its messages."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
