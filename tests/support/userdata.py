"""Small data sets in the layouts that `attnzoo data` reads, all with the same pictures and boxes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ["ant", "bee"]
# split -> for each image (width, height) and its boxes: class, x, y, w, h in whole pixels
SCENES: dict[str, list[tuple[tuple[int, int], list[tuple[int, int, int, int, int]]]]] = {
    "train": [
        ((40, 30), [(0, 4, 6, 10, 12), (1, 20, 10, 8, 8)]),
        ((24, 36), [(1, 2, 3, 12, 20)]),
        ((32, 32), []),
        ((48, 32), [(0, 8, 8, 16, 16), (0, 30, 2, 10, 20)]),
        ((32, 48), [(1, 1, 1, 30, 40)]),
    ],
    "val": [((40, 40), [(0, 10, 10, 20, 20), (1, 2, 2, 6, 6)]), ((30, 30), [(1, 5, 5, 10, 10)])],
}


def save_picture(path: Path, size: tuple[int, int], seed: int, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)


def pictures(split: str, folder: Path) -> list[tuple[Path, tuple[int, int], list[tuple[int, int, int, int, int]]]]:
    """Write the pictures of a split into `folder`."""
    made = []
    for i, (size, boxes) in enumerate(SCENES[split]):
        path = folder / f"{split}{i}.png"
        save_picture(path, size, 100 * (split == "val") + i)
        made.append((path, size, boxes))
    return made


def coco(root: Path, splits: tuple[str, ...] = ("train", "val"), ids: tuple[int, int] = (3, 7)) -> Path:
    """root/annotations/instances_SPLIT.json and root/SPLIT/."""
    (root / "annotations").mkdir(parents=True)
    for split in splits:
        content: dict[str, list[Any]] = {"images": [], "annotations": []}
        content["categories"] = [{"id": i, "name": name} for i, name in zip(ids, NAMES, strict=True)]
        for number, (path, (width, height), boxes) in enumerate(pictures(split, root / split), start=1):
            content["images"].append({"id": number, "file_name": path.name, "width": width, "height": height})
            for label, *box in boxes:
                entry = {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": ids[label]}
                content["annotations"].append(entry | {"bbox": box, "area": box[2] * box[3] / 2, "iscrowd": 0})
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def yolo(root: Path, splits: tuple[str, ...] = ("train", "val"), with_yaml: bool = True) -> Path:
    """root/images/SPLIT/ and root/labels/SPLIT/, as Ultralytics has them."""
    for split in splits:
        (root / "labels" / split).mkdir(parents=True)
        for path, (width, height), boxes in pictures(split, root / "images" / split):
            lines = [
                f"{label} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}"
                for label, x, y, w, h in boxes
            ]
            (root / "labels" / split / f"{path.stem}.txt").write_text("\n".join(lines))
    if with_yaml:
        lines = [f"{split}: images/{split}" for split in splits]
        names = ", ".join(f"{i}: {name}" for i, name in enumerate(NAMES))
        (root / "data.yaml").write_text("\n".join([*lines, f"names: {{{names}}}", ""]))
    return root


def voc(root: Path, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """root/JPEGImages, root/Annotations and root/ImageSets/Main, in PNG so that pixels are exact."""
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split in splits:
        made = pictures(split, root / "JPEGImages")
        for path, (width, height), boxes in made:
            objects = "".join(
                f"<object><name>{NAMES[label]}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin>"
                f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
                for label, x, y, w, h in boxes
            )
            size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
            text = f"<annotation><filename>{path.name}</filename>{size}{objects}</annotation>"
            (root / "Annotations" / f"{path.stem}.xml").write_text(text)
        names = "\n".join(path.stem for path, *_ in made)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(names + "\n")
    return root


def class_folders(root: Path, splits: tuple[str, ...] = ("train", "val"), count: int = 6) -> Path:
    """root/SPLIT/CLASS/*.png, or root/CLASS/*.png without splits."""
    for s, split in enumerate(splits or ("",)):
        for label, name in enumerate(NAMES):
            for i in range(count):
                save_picture(root / split / name / f"{name}{i}.png", (40 + label, 32), 1000 * s + 100 * label + i)
    return root
