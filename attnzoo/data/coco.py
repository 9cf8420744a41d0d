"""Detection data in COCO format: one folder of images and one annotation file per split."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import isdir, isfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import box_convert

from attnzoo.data.annotations import find_objects, names_outside, read_annotations, read_summary, to_coco
from attnzoo.data.batches import SampleIndex
from attnzoo.data.cache import SampleCache
from attnzoo.data.coco_images import check_exist, filter_readable, for_each_image, links_outside
from attnzoo.data.hashes import combine_hashes, hash_file
from attnzoo.data.images import MAX_DECODED_BYTES, ImageReader, check_image
from attnzoo.data.pixels import PixelTransform, apply_to_pixels, normalise
from attnzoo.data.registries import (
    DETECTION_DATASETS,
    SPLITS,
    FileDatasetSpec,
    SampleTransform,
    Target,
    Transform,
    format_difference,
    transform_errors,
)
from attnzoo.errors import UserError, plural
from attnzoo.paths import user_path, why_no_file, why_no_folder

COCO_AREA_THRESHOLDS = (32.0**2, 96.0**2)
MAX_CLASSES = 100_000  # limit for labels: category_id, where unused ids also become classes
NO_CATEGORY = "N/A"  # the name of a class index without category
TARGET_KEYS = ("labels", "boxes", "image_id", "size", "orig_size")

log = logging.getLogger(__name__)


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Images with boxes; each sample depends only on (index, seed).

    A sample is an image (3, h, w), normalised with ImageNet mean and standard deviation, and a target: `labels` (n,)
    int64; `boxes` (n, 4) cx, cy, w, h relative to the image's h, w; `image_id` (); `size` (2,) = h, w; `orig_size` (2,)
    = h, w of the file. Crowd annotations and empty boxes are dropped; boxes are clipped to the image.
    """

    def __init__(
        self,
        annotations: dict[str, Any],
        image_dir: Path,
        image_ids: Sequence[int],
        categories: Sequence[int | None],
        transform: Transform,
        reader: ImageReader | None = None,
    ):
        self.coco = to_coco(annotations)
        self.image_dir = image_dir
        self.image_ids = list(image_ids)
        self.categories = list(categories)  # category id per class index, None for an index without category
        self.transform = transform
        self._reader = reader or ImageReader()
        pixels = sum(self.coco.imgs[i]["width"] * self.coco.imgs[i]["height"] for i in self.image_ids)
        self._is_small = 3 * pixels <= MAX_DECODED_BYTES
        self._load = SampleCache(self.load_raw, enabled=self._is_small)
        self._untransformed = SampleCache(self._load_untransformed, enabled=self._is_small)
        self.decoded: Tensor | None = None  # all images, (N, 3, h, w) uint8, to be used instead of their files
        self._labels = {category: label for label, category in enumerate(categories) if category is not None}

    @property
    def num_classes(self) -> int:
        return len(self.categories)

    @property
    def class_names(self) -> list[str]:
        """One name per class index; "N/A" where category ids have a gap."""
        return [NO_CATEGORY if c is None else str(self.coco.cats[c]["name"]) for c in self.categories]

    @property
    def area_thresholds(self) -> tuple[float, float]:
        """Upper areas of small and medium objects in square pixels of the original image (default: COCO's)."""
        small, medium = self.coco.dataset.get("info", {}).get("area_thresholds", COCO_AREA_THRESHOLDS)
        return float(small), float(medium)

    @property
    def num_objects(self) -> list[int]:
        """Number of annotated objects per image, without crowds and empty boxes."""
        return [sum(min(a["bbox"][2:]) > 0 for a in self._objects(i)) for i in self.image_ids]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, item: int | SampleIndex) -> tuple[Tensor, Target]:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int | SampleIndex]) -> list[tuple[Tensor, Target]]:
        """The samples of a batch; DataLoader calls this."""
        samples = SampleIndex.of(items)
        if not isinstance(self.transform, PixelTransform):
            return [self._transformed(sample, self.transform) for sample in samples]
        images, targets = zip(*(self._untransformed(sample.index) for sample in samples), strict=True)
        pixels = apply_to_pixels(self.transform, images, [sample.seed for sample in samples])
        return [(image, dict(target)) for image, target in zip(pixels, targets, strict=True)]

    def _transformed(self, sample: SampleIndex, transform: SampleTransform) -> tuple[Tensor, Target]:
        raw_image, raw_target = self._load(sample.index)
        with transform_errors(lambda: str(self.path(sample.index))), torch.random.fork_rng(devices=[]):
            # Only the default generator: torch.manual_seed would also reseed the GPU, which fork_rng([]) leaves out.
            torch.default_generator.manual_seed(sample.seed)
            image, target = transform(raw_image, raw_target)
        return normalise(image.as_subclass(Tensor)), self._relative(sample.index, image, target, raw_image)

    def _load_untransformed(self, index: int) -> tuple[Tensor, Target]:
        if self._is_small:
            return self._read(index).as_subclass(Tensor), self._untransformed_targets[index]
        image, target = self._load(index)
        return image.as_subclass(Tensor), self._relative(index, image, target, image)

    @cached_property
    def _untransformed_targets(self) -> list[Target]:
        """The targets of all images: in one go, since one by one they take longer than decoding the images."""
        entries = [self.coco.imgs[i] for i in self.image_ids]
        owned = [(a, i) for i, entry in enumerate(entries) for a in self._objects(entry["id"])]
        sizes = torch.tensor([[entry["height"], entry["width"]] for entry in entries])
        owners = torch.tensor([i for _, i in owned], dtype=torch.int64)
        boxes = _clipped_boxes([a for a, _ in owned], sizes[owners].flip(1).tolist())
        labels = torch.tensor([self._labels[a["category_id"]] for a, _ in owned], dtype=torch.int64)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, labels, owners = boxes[kept], labels[kept], owners[kept]
        relative = box_convert(boxes, "xyxy", "cxcywh") / sizes[owners].flip(1).repeat(1, 2)
        counts = torch.bincount(owners, minlength=len(entries)).tolist()
        columns = zip(
            labels.split(counts),
            relative.split(counts),
            torch.tensor(self.image_ids),
            sizes,
            sizes.clone(),
            strict=True,
        )
        return [dict(zip(TARGET_KEYS, values, strict=True)) for values in columns]

    def _relative(self, index: int, image: Tensor, target: Target, raw_image: Tensor) -> Target:
        """The target of a sample from that of the transform, with boxes in pixels of `image`."""
        height, width = image.shape[-2:]
        boxes = box_convert(target["boxes"].as_subclass(Tensor), "xyxy", "cxcywh")
        return {
            "labels": target["labels"],
            "boxes": boxes / torch.tensor([width, height, width, height]),
            "image_id": torch.tensor(self.image_ids[index]),
            "size": torch.tensor([height, width]),
            "orig_size": torch.tensor(raw_image.shape[-2:]),
        }

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.image_dir / str(self.coco.imgs[self.image_ids[index]]["file_name"])

    def load_raw(self, index: int) -> tuple[Tensor, Target]:
        """The original image, (3, h, w) uint8, with `boxes` (n, 4) xyxy in pixels and `labels` (n,)."""
        entry = self.coco.imgs[self.image_ids[index]]
        height, width = entry["height"], entry["width"]
        image = self._read(index)
        objects = self._objects(entry["id"])
        boxes = _clipped_boxes(objects, [(width, height)] * len(objects))
        non_empty = (boxes[:, 2:] > boxes[:, :2]).all(1)
        labels = torch.tensor([self._labels[a["category_id"]] for a in objects], dtype=torch.int64)
        return image, {
            "boxes": tv_tensors.BoundingBoxes(boxes[non_empty], format="XYXY", canvas_size=(height, width)),
            "labels": labels[non_empty],
        }

    def _read(self, index: int) -> Tensor:
        if self.decoded is not None:
            return tv_tensors.Image(self.decoded[index])
        entry = self.coco.imgs[self.image_ids[index]]
        return self._reader.read(self.path(index), entry["height"], entry["width"])

    def _objects(self, image_id: int) -> list[dict[str, Any]]:
        return [a for a in self.coco.imgToAnns.get(image_id, ()) if not a["iscrowd"]]


@DETECTION_DATASETS.register("coco")
@dataclass(frozen=True, kw_only=True)
class CocoSpec(FileDatasetSpec):
    """Any data set in COCO format; paths are relative to `root`, and the defaults are COCO 2017's.

    `labels`: "category_id" uses category ids as class indices, so there are (highest id + 1) classes, 91 for COCO, as
    in published checkpoints; "contiguous" numbers the categories without gaps. `keep_empty_images`: whether to train on
    images without objects, as the published detectors do; evaluation always includes them. `on_error`: "fail" stops at
    the first missing or damaged image; "skip" checks every image on load and skips unreadable ones, with a warning.
    `outside`: "refuse" stops at file names that lead out of the image folder, through links too; "warn" says how many
    lead out by themselves.
    """

    root: str
    train_annotations: str = "annotations/instances_train2017.json"
    val_annotations: str = "annotations/instances_val2017.json"
    train_images: str = "train2017"
    val_images: str = "val2017"
    labels: Literal["category_id", "contiguous"] = "category_id"
    keep_empty_images: bool = True
    on_error: Literal["fail", "skip"] = "fail"
    outside: Literal["warn", "refuse"] = "warn"

    def __post_init__(self) -> None:
        self._path("root", directory=True)
        for split in SPLITS:
            self._path(f"{split}_annotations")
            self._path(f"{split}_images", directory=True)

    @property
    def num_classes(self) -> int:
        return len(self.category_ids)

    @property
    def class_names(self) -> list[str]:
        names = read_summary(self._path("val_annotations")).categories
        return [NO_CATEGORY if i is None else names[i] for i in self.category_ids]

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """The most common size in the training annotations."""
        return read_summary(self._path("train_annotations")).image_size

    def fingerprint(self) -> str:
        """Hash of the two annotation files; images are not read."""
        return combine_hashes(hash_file(self._path(f"{split}_annotations")) for split in SPLITS)

    def check(self) -> None:
        train, val = (read_summary(self._path(f"{split}_annotations")) for split in SPLITS)
        files = f"{self.train_annotations} and {self.val_annotations}"
        keys = ("data.dataset.train_annotations", "data.dataset.val_annotations")
        difference = format_difference(train.categories.keys(), val.categories.keys())
        if difference:
            raise UserError(f"data.dataset: {files} have different category ids ({difference})", key=keys)
        for i, name in train.categories.items():
            if name != val.categories[i]:
                other = val.categories[i]
                message = f"data.dataset: {files} have different names of category id {i}: {name!r} and {other!r}"
                raise UserError(message, key=keys)
        for split, summary in zip(SPLITS, (train, val), strict=True):
            if not summary.num_objects:
                raise self._no_objects(split)

    def _no_objects(self, split: str) -> UserError:
        key = f"data.dataset.{split}_annotations"
        reason = "crowds, and boxes that are empty or outside their image, do not count"
        return UserError(f"{key}: {self._path(f'{split}_annotations')} has no usable objects ({reason})", key=key)

    def build(self, split: str, transform: Transform) -> DetectionDataset:
        """The split's images in the order of their ids. Raises UserError for missing or invalid files."""
        path = self._path(f"{split}_annotations")
        image_dir = self._path(f"{split}_images", directory=True)
        annotations = read_annotations(path)
        self.check()
        entries = sorted(annotations["images"], key=lambda entry: entry["id"])
        outside = links_outside(image_dir, entries) if self.outside == "refuse" else names_outside(annotations)
        if outside:
            message = f"{path}: {plural(len(outside), 'image')} outside the image folder; the first: {outside[0]!r}"
            if self.outside == "refuse":
                raise UserError(f"data.dataset.outside = 'refuse': {message}", key="data.dataset.outside")
            log.warning("%s (to refuse them: data.dataset.outside = 'refuse')", message)
        ids_with_objects = _ids_with_objects(annotations, path, split)
        if split == "train" and not self.keep_empty_images:
            entries = [entry for entry in entries if entry["id"] in ids_with_objects]
        reader = ImageReader()
        if self.on_error == "skip":
            entries = filter_readable(reader, image_dir, entries)
        elif split == "val":  # read long after the start, so checked now
            for_each_image(check_image, image_dir, entries)
        else:
            check_exist(image_dir, entries)
        image_ids = [entry["id"] for entry in entries]
        if ids_with_objects.isdisjoint(image_ids):
            raise self._no_objects(split)
        return DetectionDataset(annotations, image_dir, image_ids, self.category_ids, transform, reader)

    @property
    def category_ids(self) -> list[int | None]:
        """One category id per class index, None for an index without category."""
        ids = sorted(read_summary(self._path("val_annotations")).categories)
        if self.labels == "contiguous":
            return [*ids]
        if ids[-1] >= MAX_CLASSES:
            raise UserError(
                f"data.dataset.labels: category id {ids[-1]} of {self._path('val_annotations')} exceeds the maximum of "
                f"{MAX_CLASSES} classes; use labels: contiguous",
                key="data.dataset.labels",
            )
        used = set(ids)
        return [i if i in used else None for i in range(ids[-1] + 1)]

    def _path(self, option: str, directory: bool = False) -> Path:
        root = user_path(self.root)
        path = root if option == "root" else root / user_path(getattr(self, option))
        if not (isdir(path) if directory else isfile(path)):
            key, reason = f"data.dataset.{option}", (why_no_folder if directory else why_no_file)(path)
            raise UserError(f"{key}: {path}: {reason}", key=key)
        return path


def _clipped_boxes(objects: Sequence[dict[str, Any]], sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Boxes (n, 4) xyxy in pixels, clipped to image sizes (width, height); empty if outside."""
    xywh = torch.from_numpy(np.array([a["bbox"] for a in objects], dtype=np.float32).reshape(-1, 4))
    limits = torch.from_numpy(np.array(sizes, dtype=np.float32).reshape(-1, 2)).repeat(1, 2)
    return box_convert(xywh, "xywh", "xyxy").clamp_(min=0).minimum(limits)


def _ids_with_objects(annotations: dict[str, Any], path: Path, split: str) -> set[int]:
    """Ids of images with usable boxes; logs how many boxes are not usable or under a pixel, and the first."""
    objects, owners, shorter_sides = find_objects(annotations)
    empty, tiny = shorter_sides <= 0, (shorter_sides > 0) & (shorter_sides < 1)
    consequence = "not trained on" if split == "train" else "cannot be detected, but count as objects in AP and AR"
    for wrong, text in (
        (empty, f"boxes are empty or outside their image and {consequence}"),
        (tiny, "boxes are under a pixel wide or high (COCO boxes are in pixels, not fractions)"),
    ):
        if wrong.any():
            i = int(wrong.argmax())
            first = f"{objects[i]['bbox']} of {owners[i]['file_name']}"
            log.warning("%s: %d of %d %s; the first: %s", path, wrong.sum(), len(objects), text, first)
    return {image["id"] for image, dropped in zip(owners, empty.tolist(), strict=True) if not dropped}
