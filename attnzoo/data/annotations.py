"""Reading COCO annotation files, and mending what pycocotools silently gets wrong."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from attnzoo.errors import UserError

REQUIRED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


def read_annotations(path: Path) -> dict[str, Any]:
    """The content of a COCO instances file, checked and complete.

    Optional fields get their defaults: `iscrowd` 0, `area` that of the box. Annotations are numbered anew from 1,
    because pycocotools takes a match with annotation 0 for no match, and loses annotations that share an id. Raises
    UserError naming the file and the entry for whatever else is not as the format says.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: the annotation file is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a COCO instances file, which holds images, annotations and categories")
    for section, keys in REQUIRED.items():
        if not isinstance(content.get(section), list):
            raise UserError(f"{path}: not a COCO instances file: it has no list of {section}")
        for number, entry in enumerate(content[section]):
            missing = [key for key in keys if key not in entry]
            if missing:
                raise UserError(f"{path}: {section}[{number}] has no {missing[0]!r}")
    _check_references(path, content)
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation["id"] = number
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    return content


def _check_references(path: Path, content: dict[str, Any]) -> None:
    ids = {}
    for section in ("images", "categories"):
        ids[section] = {entry["id"] for entry in content[section]}
        if len(ids[section]) < len(content[section]):
            raise UserError(f"{path}: two of the {section} have the same id")
    if not ids["categories"] or not all(isinstance(key, int) and key >= 0 for key in ids["categories"]):
        raise UserError(f"{path}: categories: expected at least one, with ids that are whole numbers from 0")
    for number, annotation in enumerate(content["annotations"]):
        box = annotation["bbox"]
        if len(box) != 4 or not all(isinstance(side, int | float) for side in box):
            raise UserError(f"{path}: annotations[{number}].bbox = {box!r}: expected four numbers x, y, width, height")
        for section, key in (("images", "image_id"), ("categories", "category_id")):
            if annotation[key] not in ids[section]:
                raise UserError(f"{path}: annotations[{number}].{key} = {annotation[key]!r} is none of the {section}")


def index(content: dict[str, Any]) -> COCO:
    """The content as an indexed pycocotools COCO, made without its messages."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
