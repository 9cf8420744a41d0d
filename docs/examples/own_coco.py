"""Writes a small data set in COCO format: `python docs/examples/own_coco.py FOLDER [--images N] [--val]`.

It stands for data of your own: 300 photographs of 64 x 64 pixels with handwritten digits, labelled by shape: digits
with a `loop` (0, 6, 8, 9), of straight `line`s (1, 4, 7) and with an open `curve` (2, 3, 5).
"""

import argparse
import json
import tempfile
from pathlib import Path

from attnzoo.data.scenes import DigitScenes

SHAPES = {"loop": (0, 6, 8, 9), "line": (1, 4, 7), "curve": (2, 3, 5)}


def write(folder: Path, images: int, val: int) -> None:
    """Write `folder`/photos and `folder`/annotations; `val` images more in a validation split if it is not 0."""
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        generated = Path(name)
        DigitScenes(train_images=images, val_images=max(val, 1), seed=1000).generate(generated)
        (folder / "annotations").mkdir()
        for split in ("train", "val") if val else ("train",):
            content = json.loads((generated / "annotations" / f"{split}.json").read_text())
            (folder / "annotations" / f"{split}.json").write_text(json.dumps(relabel(content)))
            (folder / f"photos_{split}").mkdir()
            for image in (generated / split).iterdir():
                (folder / f"photos_{split}" / image.name).write_bytes(image.read_bytes())


def relabel(content: dict) -> dict:
    """The annotations of digits with shapes as classes."""
    number = {digit: i for i, digits in enumerate(SHAPES.values(), start=1) for digit in digits}
    annotations = [a | {"category_id": number[a["category_id"]]} for a in content["annotations"]]
    categories = [{"id": i, "name": name} for i, name in enumerate(SHAPES, start=1)]
    info = {"area_thresholds": content["info"]["area_thresholds"]}
    return {"info": info, "images": content["images"], "annotations": annotations, "categories": categories}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=300, help="training images (300)")
    parser.add_argument("--val", action="store_true", help="also write 300 validation images")
    args = parser.parse_args()
    write(args.folder, args.images, 300 if args.val else 0)
