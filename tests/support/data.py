"""Tiny COCO folders for tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attnzoo.data.config import DataConfig

SIZES = ((40, 30), (24, 36), (50, 50), (33, 20), (28, 28))  # width, height
BOXES = {  # image id -> (category id, bbox, iscrowd)
    1: [(3, [5, 4, 10, 12], 0), (7, [-5, -5, 15, 15], 0), (3, [8, 8, 0, 5], 0)],
    2: [(7, [2, 3, 12, 20], 0), (3, [0, 0, 20, 30], 1)],
    3: [],
    4: [(1, [20, 10, 40, 40], 0)],
    5: [(3, [4, 4, 16, 16], 0)],
}


def picture(width: int, height: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def coco_folder(root: Path) -> Path:
    """Five images of different sizes with categories 1, 3 and 7; the same for train and val."""
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": i, "name": name} for i, name in ((1, "ant"), (3, "bee"), (7, "cat"))]
    (root / "annotations").mkdir(parents=True)
    (root / "pictures").mkdir()
    for image_id, (width, height) in enumerate(SIZES, start=1):
        name = f"{image_id}.png"
        Image.fromarray(picture(width, height, image_id)).save(root / "pictures" / name)
        content["images"].append({"id": image_id, "file_name": name, "width": width, "height": height})
        for category, box, crowd in BOXES[image_id]:
            content["annotations"].append(
                {"id": len(content["annotations"]), "image_id": image_id, "category_id": category}
                | {"bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
            )
    (root / "annotations" / "all.json").write_text(json.dumps(content))
    return root


def edit(root: Path, change: Any) -> None:
    """Apply `change` to the annotation file's content."""
    path = root / "annotations" / "all.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def coco_config(root: Path, augment: dict[str, Any] | None = None, **options: Any) -> DataConfig:
    paths = dict.fromkeys(("train_annotations", "val_annotations"), "annotations/all.json")
    paths |= dict.fromkeys(("train_images", "val_images"), "pictures")
    dataset = {"name": "coco", "root": str(root)} | paths | options
    return DataConfig(dataset=dataset, augment=augment or {"name": "none"})
