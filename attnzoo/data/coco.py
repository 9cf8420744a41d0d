"""Detection data in COCO format: one folder of images and one annotation file per split."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from os.path import isdir, isfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as F

from attnzoo.data.annotations import index, read_annotations
from attnzoo.data.batches import SampleIndex
from attnzoo.data.images import read_image
from attnzoo.data.registries import DETECTION_DATASETS, SPLITS, OnDisk, Target, Transform
from attnzoo.errors import UserError, unknown

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for RGB in [0, 1]
COCO_AREAS = (32.0**2, 96.0**2)
MOST_CLASSES = 100_000  # by category id, where a gap costs a class
KEPT_BYTES = 256 * 2**20  # data sets up to this size, once decoded, stay in memory

log = logging.getLogger(__name__)


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Images with boxes. Sample i is a pure function of (i, seed): neither workers nor order change it.

    A sample is an image (3, h, w), normalised by ImageNet's mean and deviation, and a target: `labels` (n,) int64;
    `boxes` (n, 4) cx, cy, w, h relative to the image's own h, w; `image_id` (); `size` (2,) = h, w; `orig_size` (2,)
    = h, w of the file. Crowds are left out, boxes clamped to the image and those without area dropped.
    """

    def __init__(
        self,
        content: dict[str, Any],
        images: Path,
        image_ids: Sequence[int],
        categories: Sequence[int | None],
        transform: Transform,
    ):
        self.coco = index(content)
        self.images = images
        self.image_ids = list(image_ids)
        self.categories = list(categories)  # category id per class index, None for an index without category
        self.transform = transform
        pixels = sum(self.coco.imgs[i]["width"] * self.coco.imgs[i]["height"] for i in self.image_ids)
        self._kept: dict[int, tuple[Tensor, Target]] | None = {} if 3 * pixels <= KEPT_BYTES else None
        self._labels = {category: label for label, category in enumerate(categories) if category is not None}

    @property
    def num_classes(self) -> int:
        return len(self.categories)

    @property
    def class_names(self) -> list[str]:
        """One name per class index; "N/A" where category ids have a gap."""
        return ["N/A" if c is None else str(self.coco.cats[c]["name"]) for c in self.categories]

    @property
    def area_thresholds(self) -> tuple[float, float]:
        """Square pixels of the original image up to which an object is small, and medium; COCO's if none are stored."""
        small, medium = self.coco.dataset.get("info", {}).get("area_thresholds", COCO_AREAS)
        return float(small), float(medium)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, item: int | SampleIndex) -> tuple[Tensor, Target]:
        draw = item if isinstance(item, SampleIndex) else SampleIndex(item, seed=0)
        image, target = self._load(draw.index)
        orig_size = image.shape[-2:]
        with torch.random.fork_rng(devices=[]):
            # The default generator alone: torch.manual_seed would also reseed the GPU, which fork_rng([]) leaves out.
            torch.default_generator.manual_seed(draw.seed)
            image, target = self.transform(image, target)
        pixels = F.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True)
        height, width = pixels.shape[-2:]
        boxes = box_convert(target["boxes"].as_subclass(Tensor), "xyxy", "cxcywh")
        return F.normalize(pixels, MEAN, STD, inplace=True), {
            "labels": target["labels"],
            "boxes": boxes / torch.tensor([width, height, width, height]),
            "image_id": torch.tensor(self.image_ids[draw.index]),
            "size": torch.tensor([height, width]),
            "orig_size": torch.tensor(orig_size),
        }

    def _load(self, position: int) -> tuple[Tensor, Target]:
        if self._kept is None:
            return self.raw(position)
        if position not in self._kept:
            self._kept[position] = self.raw(position)
        return self._kept[position]

    def raw(self, position: int) -> tuple[Tensor, Target]:
        """Image `position` as stored, (3, h, w) uint8, with `boxes` (n, 4) xyxy in pixels and `labels` (n,)."""
        entry = self.coco.imgs[self.image_ids[position]]
        height, width = entry["height"], entry["width"]
        image = read_image(self.images / entry["file_name"], height, width)
        kept = [a for a in self.coco.imgToAnns.get(entry["id"], ()) if not a["iscrowd"]]
        boxes = box_convert(torch.tensor([a["bbox"] for a in kept], dtype=torch.float32).view(-1, 4), "xywh", "xyxy")
        boxes[:, 0::2].clamp_(0, width)
        boxes[:, 1::2].clamp_(0, height)
        solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
        labels = torch.tensor([self._labels[a["category_id"]] for a in kept], dtype=torch.int64)
        return image, {
            "boxes": tv_tensors.BoundingBoxes(boxes[solid], format="XYXY", canvas_size=(height, width)),
            "labels": labels[solid],
        }


@DETECTION_DATASETS.register("coco")
@dataclass(frozen=True, kw_only=True)
class CocoFolder(OnDisk):
    """Any data set in COCO format; paths are relative to `root`, and the defaults are COCO 2017's.

    `labels`: "category_id" makes the class index the category id, so that there are (highest id + 1) classes, 91 for
    COCO, as published checkpoints have it; "contiguous" numbers the categories without gaps. `train_empty`: whether
    images without objects are trained on, as the published detectors do; evaluation always keeps them. `on_error`:
    "fail" stops at the first missing or damaged image; "skip" reads every image when the split is opened, leaves out
    the bad ones and logs how many.
    """

    root: str
    train_annotations: str = "annotations/instances_train2017.json"
    val_annotations: str = "annotations/instances_val2017.json"
    train_images: str = "train2017"
    val_images: str = "val2017"
    labels: Literal["category_id", "contiguous"] = "category_id"
    train_empty: bool = True
    on_error: Literal["fail", "skip"] = "fail"

    def __post_init__(self) -> None:
        self._path("root", directory=True)
        for split in SPLITS:
            self._path(f"{split}_annotations")
            self._path(f"{split}_images", directory=True)

    @property
    def num_classes(self) -> int:
        return len(self._categories)

    def open(self, split: str, transform: Transform) -> DetectionDataset:
        """The split's images in the order of their ids; raises UserError for whatever is wrong with its files."""
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        content = self._val_content if split == "val" else read_annotations(self._path("train_annotations"))
        if _ids(content) != _ids(self._val_content):
            raise UserError(
                f"data.dataset: {self.train_annotations} and {self.val_annotations} have different category ids"
            )
        folder = self._path(f"{split}_images", directory=True)
        entries = sorted(content["images"], key=lambda entry: entry["id"])
        if split == "train" and not self.train_empty:
            filled = {a["image_id"] for a in content["annotations"] if not a["iscrowd"]}
            entries = [entry for entry in entries if entry["id"] in filled]
        if self.on_error == "skip":
            entries = _readable(folder, entries)
        else:
            for entry in entries:
                if not isfile(folder / entry["file_name"]):
                    raise UserError(f"{folder / entry['file_name']}: the image file is missing")
        if not entries:
            raise UserError(f"{self._path(f'{split}_annotations')}: no images are left to use")
        return DetectionDataset(content, folder, [e["id"] for e in entries], self._categories, transform)

    @cached_property
    def _val_content(self) -> dict[str, Any]:
        # The smaller file, from which the classes of both splits are known.
        return read_annotations(self._path("val_annotations"))

    @property
    def _categories(self) -> list[int | None]:
        ids = _ids(self._val_content)
        if self.labels == "contiguous":
            return list(ids)
        if ids[-1] >= MOST_CLASSES:
            path = self._path("val_annotations")
            raise UserError(
                f"{path}: categories: category id {ids[-1]} would make as many classes, {MOST_CLASSES} are the most; "
                "use labels: contiguous"
            )
        known = set(ids)
        return [i if i in known else None for i in range(ids[-1] + 1)]

    def _path(self, key: str, directory: bool = False) -> Path:
        root = Path(self.root).expanduser()
        path = root if key == "root" else root / getattr(self, key)
        if not (isdir(path) if directory else isfile(path)):
            message = f"data.dataset.{key}: there is no {'folder' if directory else 'file'} {path}"
            raise UserError(message, key=f"data.dataset.{key}")
        return path


def _ids(content: dict[str, Any]) -> list[int]:
    return sorted(category["id"] for category in content["categories"])


def _readable(folder: Path, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries whose image files can be read whole; logs a count and the first of the others."""

    def complaint(entry: dict[str, Any]) -> str | None:
        try:
            read_image(folder / entry["file_name"], entry["height"], entry["width"])
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        complaints = list(pool.map(complaint, entries))
    bad = [text for text in complaints if text]
    if bad:
        log.warning("%s: %d of %d images are skipped; the first: %s", folder, len(bad), len(entries), bad[0])
    return [entry for entry, text in zip(entries, complaints, strict=True) if not text]
