"""`digits`: which handwritten digit is on the photograph? A classification data set that needs no download."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from attnzoo.data.cache import cached_folder
from attnzoo.data.classification import LABELLED, Folder, ImageTransform, LabelledDataset
from attnzoo.data.drawing import CLASSES, Look, Painter, plain, require
from attnzoo.data.registries import SPLITS

VERSION = 1  # raised whenever the same options would give other images


@LABELLED.register("digits")
@dataclass(frozen=True, kw_only=True)
class Digits(Look):
    """One of scikit-learn's 8x8 digits, placed, scaled and turned, on a crop of its photographs.

    `clutter` adds torn digits that carry no label. Images are drawn as those of `digit_scenes` and written to the
    cache, a folder per class. Digits and halves of photographs belong to train or to val, never to both, and image i
    depends on (seed, version, split, i) and the look.

    Besides the options of `Look`, of which `objects` is fixed: the number of images of each split, and the seed.
    """

    objects: tuple[int, int] = field(default=(1, 1), init=False)
    image_size: int = 48
    sizes: tuple[float, float] = (24.0, 40.0)
    contrast: tuple[float, float] = (110.0, 200.0)
    train_images: int = 8000
    val_images: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        self.check()
        require("train_images", self.train_images, self.train_images >= 1, "at least 1")
        require("val_images", self.val_images, self.val_images >= 1, "at least 1")
        require("seed", self.seed, self.seed >= 0, "at least 0")

    @property
    def num_classes(self) -> int:
        return CLASSES

    @property
    def shape(self) -> tuple[int, int]:
        return self.image_size, self.image_size

    @property
    def train_length(self) -> int:
        return self.train_images

    def open(self, split: str, transform: ImageTransform) -> LabelledDataset:
        """The split, from the cache; both splits are made if they are not there."""
        dataset = self._files.open(split, transform)
        return LabelledDataset(dataset.source, CLASSES, transform, keep=True)

    @cached_property
    def _files(self) -> Folder:
        return Folder(root=str(cached_folder("digits", plain(self) | {"version": VERSION}, self.write)))

    def write(self, folder: Path) -> None:
        """Draw both splits into `folder`, as train/LABEL/ and val/LABEL/."""
        for number, split in enumerate(SPLITS):
            for label in range(CLASSES):
                (folder / split / str(label)).mkdir(parents=True)
            painter = Painter(self, split)
            for i in range(getattr(self, f"{split}_images")):
                scene = painter.paint(np.random.default_rng([self.seed, VERSION, number, i]))
                (digit,) = scene.digits
                Image.fromarray(scene.pixels).save(folder / split / str(digit.label) / f"{i:06d}.png", compress_level=0)
