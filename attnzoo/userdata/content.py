"""What a folder holds, whatever its layout: images, boxes, classes, splits."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torchvision.datasets.folder import IMG_EXTENSIONS

from attnzoo.data.images import upright_size
from attnzoo.errors import UserError

Array = npt.NDArray[Any]
Layout = Literal["coco", "class folders", "yolo", "voc"]
SUFFIXES = (*IMG_EXTENSIONS, ".gif")
_SPLIT_WORDS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class Problem:
    """`count` images, boxes or files with the same problem, and the first; `error`: training refuses them."""

    text: str
    count: int
    first: str
    error: bool = False


@dataclass(frozen=True)
class Split:
    """The images of one split.

    `sizes` (I, 2) int64, width and height in pixels, 0 where unknown. Boxes: `boxes` (N, 4) float64 x, y, width, height
    in pixels, `labels` (N,) indices into the classes, `owners` (N,) indices into `paths`, `crowds` (N,) bool.
    `image_labels` (I,): of class folders, else empty.
    """

    source: Path  # annotation file or folder
    image_dir: Path
    paths: list[Path]
    sizes: Array
    boxes: Array
    labels: Array
    owners: Array
    crowds: Array
    image_labels: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    problems: tuple[Problem, ...] = ()
    raw: dict[str, Any] | None = None  # content of a COCO annotation file

    @cached_property
    def boxes_per_image(self) -> Array:
        """Number of boxes of each image (I,), without crowds."""
        return np.bincount(self.owners[~self.crowds], minlength=len(self.paths))

    def class_counts(self, num_classes: int) -> Array:
        """Number of boxes without crowds, or of images in class folders, of each class."""
        labels = self.labels[~self.crowds] if not len(self.image_labels) else self.image_labels
        return np.bincount(labels, minlength=num_classes)


@dataclass(frozen=True)
class Content:
    """A data set: `splits` has "train", and "val" if there is one. `category_ids`: of each class, in COCO format."""

    root: Path
    layout: Layout
    classes: list[str]
    splits: dict[str, Split]
    notes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()

    @property
    def is_detection(self) -> bool:
        return self.layout != "class folders"


def split_of(path: Path) -> str | None:
    """The split that the name of a file or folder tells, such as "train" for instances_train2017.json."""
    words = re.split(r"[^a-z]+", path.name.lower())
    return next((split for split, names in _SPLIT_WORDS.items() if set(names) & set(words)), None)


def use_test_as_val(splits: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Without a validation split the test split takes its place; otherwise it is left out. Says what was done."""
    used = dict(splits)
    test = used.pop("test", None)
    if test is None:
        return used, ()
    if "val" in used:
        return used, ("the test split is not read",)
    return used | {"val": test}, ("there is no validation split; the test split is used as one",)


def subfolders(root: Path, depth: int) -> Iterator[Path]:
    """`root` and the folders below it to a depth, without hidden ones, in order; links are followed."""
    yield root
    if depth:
        for path in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
            yield from subfolders(path, depth - 1)


def images_in(folder: Path) -> list[Path]:
    """The image files in a folder, by their suffix, sorted."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def read_sizes(paths: Iterable[Path]) -> Array:
    """Upright width and height (I, 2) of image files, from their headers; 0 for one that cannot be read."""
    sizes = []
    for path in paths:
        try:
            sizes.append(upright_size(path))
        except UserError:
            sizes.append((0, 0))
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def make_split(
    source: Path,
    image_dir: Path,
    paths: list[Path],
    sizes: Array,
    rows: list[tuple[int, int, tuple[float, float, float, float], bool]],
    **other: Any,
) -> Split:
    """A split of a detection data set; `rows`: owner, label, x y w h, crowd of each box."""
    return Split(
        source,
        image_dir,
        paths,
        sizes,
        boxes=np.array([row[2] for row in rows], dtype=np.float64).reshape(-1, 4),
        labels=np.array([row[1] for row in rows], dtype=np.int64),
        owners=np.array([row[0] for row in rows], dtype=np.int64),
        crowds=np.array([row[3] for row in rows], dtype=bool),
        **other,
    )
