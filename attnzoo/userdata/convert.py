"""Writes a data set so that it can be trained on: COCO annotation files or class folders, with a validation split."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attnzoo.errors import UserError
from attnzoo.files import open_file
from attnzoo.userdata.content import Array, Content, Split

VAL_FRACTION = 0.2
IMAGES = "images"  # link to the folder of the images


def convert(content: Content, out: Path, val_fraction: float = VAL_FRACTION) -> None:
    """Write a data set in COCO format, or class folders, into the new folder `out`; images are linked, not copied.

    Without a validation split, the images with the lowest hashes of their content become one: copies of an image stay
    on one side. Of class folders these are taken from each class. Raises UserError if `out` exists, a split would be
    empty, or images are missing.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; name another folder, or remove it")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    try:
        partial.mkdir(parents=True)
        (_write_coco if content.is_detection else _write_folders)(content, partial, val_fraction)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_coco(content: Content, out: Path, val_fraction: float) -> None:
    ids = content.category_ids or tuple(range(1, len(content.classes) + 1))
    categories = [{"id": i, "name": name} for i, name in zip(ids, content.classes, strict=True)]
    parts = {name: (split, np.arange(len(split.paths))) for name, split in content.splits.items()}
    if "val" not in parts:
        train = content.splits["train"]
        is_val = _choose(train.paths, val_fraction)
        parts = {"train": (train, np.flatnonzero(~is_val)), "val": (train, np.flatnonzero(is_val))}
    (out / "annotations").mkdir()
    (out / IMAGES).symlink_to(content.root, target_is_directory=True)
    for name, (split, chosen) in parts.items():
        images, annotations = _instances(content, split, chosen, ids)
        info = {"description": f"{content.root}, split {name}"}
        if split.raw is not None:
            info = split.raw.get("info", {})
        values = {"info": info, "images": images, "annotations": annotations, "categories": categories}
        (out / "annotations" / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")


def _instances(
    content: Content, split: Split, chosen: Array, ids: Sequence[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The images with these indices, but not those of unknown size, and their annotations."""
    chosen = chosen[(split.sizes[chosen] > 0).all(1)]
    new_id = {index: number for number, index in enumerate(chosen.tolist(), start=1)}
    images = [
        {"id": number, "file_name": _name(content.root, split.paths[index])}
        | dict(zip(("width", "height"), split.sizes[index].tolist(), strict=True))
        for index, number in new_id.items()
    ]
    annotations: list[dict[str, Any]] = []
    rows = zip(split.owners.tolist(), split.labels.tolist(), split.boxes.tolist(), split.crowds.tolist(), strict=True)
    for row, (owner, label, box, crowd) in enumerate(rows):
        if owner in new_id and min(box[2:]) >= 0:
            entry = split.raw["annotations"][row] if split.raw is not None else {"area": box[2] * box[3]}
            annotations.append(
                entry
                | {"id": len(annotations) + 1, "image_id": new_id[owner], "category_id": ids[label]}
                | {"bbox": box, "iscrowd": int(crowd)}
            )
    return images, annotations


def _name(root: Path, path: Path) -> str:
    """Relative to the linked folder; absolute if the image is elsewhere."""
    normal = Path(os.path.normpath(path))
    return str(normal.relative_to(root)) if normal.is_relative_to(root) else str(normal)


def _write_folders(content: Content, out: Path, val_fraction: float) -> None:
    for label, name in enumerate(content.classes):
        parts = {split: _of_class(part, label) for split, part in content.splits.items()}
        if "val" not in parts:
            is_val = _choose(parts["train"], val_fraction)
            parts = {
                "train": [path for path, chosen in zip(parts["train"], is_val, strict=True) if not chosen],
                "val": [path for path, chosen in zip(parts["train"], is_val, strict=True) if chosen],
            }
        for split, paths in parts.items():
            folder = out / split / name
            folder.mkdir(parents=True)
            for path in paths:
                (
                    folder / _link_name(path, content.splits.get(split, content.splits["train"]).source / name)
                ).symlink_to(path)


def _of_class(split: Split, label: int) -> list[Path]:
    return [path for path, other in zip(split.paths, split.image_labels.tolist(), strict=True) if other == label]


def _link_name(path: Path, folder: Path) -> str:
    """The name of an image, with those of the folders between it and its class."""
    return "_".join(path.relative_to(folder).parts)


def _choose(paths: Sequence[Path], fraction: float) -> Array:
    """Which images are for validation (I,) bool: those with the lowest hashes, about `fraction`, at least one."""
    if len(paths) < 2:
        raise UserError(f"{paths[0].parent if paths else 'no images'}: too few images for a validation split")
    digests = []
    for path in paths:
        try:
            with open_file(path) as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise UserError(f"{path}: the image cannot be read ({error.strerror})") from None
    distinct = sorted(set(digests))
    chosen = set(distinct[: max(round(fraction * len(distinct)), 1)])
    if len(chosen) == len(distinct):
        raise UserError(f"{paths[0].parent}: all images are the same; there is nothing to validate on")
    return np.array([digest in chosen for digest in digests])
