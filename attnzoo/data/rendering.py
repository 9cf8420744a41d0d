"""Rendering of synthetic digit images."""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnzoo.data.checks import check_option

NUM_CLASSES = 10
Box = tuple[int, int, int, int]  # x, y, w, h in pixels

UPSCALE = 4  # from the digits' 8x8 pixels to the masks that are rotated and scaled
MAX_PLACEMENT_ATTEMPTS = 40  # per object
# Look-up tables for mask values 0 … 255. The first sharpens edges blurred by interpolation.
CONTRAST_LUT = [min(max(round((value - 48) * 1.7), 0), 255) for value in range(256)]
THRESHOLD_LUT = [255 * (value >= 64) for value in range(256)]
BLOCK_PERMUTATION = [(7 * block + 3) % 16 for block in range(16)]
LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """Appearance of the images.

    `image_size`: side in pixels. `objects`: min and max digits per image; digits that cannot be placed are skipped.
    `clutter`: min and max distractors: digits with shuffled blocks, not annotated. `sizes`: longer side of a digit's
    box in pixels, log-uniform. `aspect`: factor on width over height, log-uniform. `rotation`: maximum angle in
    degrees. `contrast`: luminance difference to the background, of 255. `max_overlap`: maximum intersection of two
    boxes over the smaller box. `noise`: standard deviation, of 255.
    """

    image_size: int = 64
    objects: tuple[int, int] = (2, 4)
    clutter: tuple[int, int] = (0, 0)
    sizes: tuple[float, float] = (10.0, 28.0)
    aspect: tuple[float, float] = (0.85, 1.2)
    rotation: float = 20.0
    contrast: tuple[float, float] = (70.0, 150.0)
    max_overlap: float = 0.1
    noise: float = 3.0

    def __post_init__(self) -> None:
        check = check_dataset_option
        check("image_size", self.image_size, 16 <= self.image_size <= 4096, "from 16 to 4096 pixels")
        for name, least in (("objects", 0), ("clutter", 0), ("sizes", 4), ("aspect", 0.1), ("contrast", 0)):
            low, high = getattr(self, name)
            check(name, [low, high], high <= 4096, "at most 4096")
            check(name, [low, high], least <= low <= high, f"two ascending numbers of at least {least}")
        check("sizes", list(self.sizes), self.sizes[1] <= self.image_size, f"at most image_size = {self.image_size}")
        check("contrast", list(self.contrast), self.contrast[1] <= 255, "at most 255")
        check("aspect", list(self.aspect), self.aspect[1] <= 10, "at most 10")
        check("rotation", self.rotation, 0 <= self.rotation <= 180, "from 0 to 180 degrees")
        check("max_overlap", self.max_overlap, 0 <= self.max_overlap <= 1, "a fraction from 0 to 1")
        check("noise", self.noise, self.noise >= 0, "at least 0")


def check_dataset_option(name: str, value: Any, ok: bool, expected: str) -> None:
    """Raise UserError for the option `name` of a data set unless `ok`."""
    check_option(f"data.dataset.{name}", value, ok, expected)


@dataclass(frozen=True)
class Digit:
    """A digit in a scene: class, tight box, and index into load_digits."""

    label: int
    box: Box
    index: int


@dataclass(frozen=True, eq=False)
class Scene:
    """`pixels` (image_size, image_size, 3) uint8, `crop_box` (x0, y0, x1, y1) in the photograph, and the digits."""

    pixels: NDArray[np.uint8]
    photo: str
    crop_box: Box
    digits: list[Digit]


class SceneRenderer:
    """Renders scenes of one split from its digits and its halves of the photographs."""

    def __init__(self, options: SceneOptions, split: str):
        self.options = options
        self.digits = digit_indices(split)
        self.labels = _load_digits()[1]
        # Crop first: resize with `box` would sample pixels outside the region.
        regions = {name: split_region(name, split) for name in sorted(photographs())}
        self.photos = [(name, region[0], photographs()[name].crop(region)) for name, region in regions.items()]

    def render(self, rng: np.random.Generator) -> Scene:
        """One scene, determined by the generator's state and the options."""
        pixels, photo, crop_box = self._background(rng)
        boxes: list[Box] = []
        digits = self._place(rng, self.options.objects, boxes)
        clutter = self._place(rng, self.options.clutter, boxes, shuffled=True)
        for _, box, mask in clutter + digits:
            self._paste(rng, pixels, box, mask)
        pixels += self.options.noise * rng.standard_normal(pixels.shape, np.float32)
        return Scene(
            pixels.round().clip(0, 255).astype(np.uint8),
            photo,
            crop_box,
            [Digit(self.labels[index], box, index) for index, box, _ in digits],
        )

    def _background(self, rng: np.random.Generator) -> tuple[NDArray[np.float32], str, Box]:
        """A square crop of 1/4 to 3/4 of the region's shorter side, resized to the image."""
        name, left, region = self.photos[int(rng.integers(len(self.photos)))]
        side = int(rng.uniform(0.25, 0.75) * min(region.size))
        x, y = rng.integers(0, (region.width - side, region.height - side), endpoint=True).tolist()
        size = (self.options.image_size, self.options.image_size)
        crop = region.resize(size, Image.Resampling.BILINEAR, box=(x, y, x + side, y + side), reducing_gap=2.0)
        return np.array(crop, dtype=np.float32), name, (left + x, y, left + x + side, y + side)

    def _place(
        self, rng: np.random.Generator, count: tuple[int, int], boxes: list[Box], shuffled: bool = False
    ) -> list[tuple[int, Box, NDArray[np.float32]]]:
        """Digit index, box and mask of new objects; their boxes are appended to `boxes`."""
        size = self.options.image_size
        objects = []
        for _ in range(int(rng.integers(count[0], count[1], endpoint=True))):
            index = self.digits[int(rng.integers(len(self.digits)))]
            mask = self._mask(rng, index, shuffled)
            h, w = mask.shape
            corners = rng.integers(0, (size - w, size - h), (MAX_PLACEMENT_ATTEMPTS, 2), endpoint=True)
            for x, y in corners.tolist():
                box = (x, y, w, h)
                if all(overlap(box, other) <= self.options.max_overlap for other in boxes):
                    boxes.append(box)
                    objects.append((index, box, mask))
                    break
        return objects

    def _mask(self, rng: np.random.Generator, index: int, shuffled: bool) -> NDArray[np.float32]:
        """The digit rotated, scaled and cropped to its strokes, (h, w) in 0…1."""
        rotation = self.options.rotation
        rotated = digit_mask(index, shuffled).rotate(
            rng.uniform(-rotation, rotation), Image.Resampling.BICUBIC, expand=True
        )
        bbox = rotated.point(THRESHOLD_LUT).getbbox()
        assert bbox is not None  # no digit is blank
        aspect = _log_uniform(rng, self.options.aspect) * (bbox[2] - bbox[0]) / (bbox[3] - bbox[1])
        long_side = _log_uniform(rng, self.options.sizes)
        w, h = long_side * min(1, aspect), long_side * min(1, 1 / aspect)
        scaled = rotated.resize((max(round(w), 2), max(round(h), 2)), Image.Resampling.BILINEAR, box=bbox)
        return np.asarray(scaled).astype(np.float32) / np.float32(255)

    def _paste(
        self, rng: np.random.Generator, pixels: NDArray[np.float32], box: Box, mask: NDArray[np.float32]
    ) -> None:
        """Blend the mask into `pixels` in a random colour, lighter or darker than the background."""
        x, y, w, h = box
        background = pixels[y : y + h, x : x + w]
        luminance = float(background.mean((0, 1)) @ LUMA_WEIGHTS)
        contrast = rng.uniform(*self.options.contrast)
        headroom = {1.0: 255 - luminance, -1.0: luminance}
        signs = [sign for sign, room in headroom.items() if room >= contrast]
        signs = signs or [max(headroom, key=lambda sign: headroom[sign])]
        target = np.clip(luminance + float(rng.choice(signs)) * contrast, 0, 255)
        tint = rng.uniform(-60, 60, 3)
        colour = np.clip(target + tint - tint @ LUMA_WEIGHTS, 0, 255).astype(np.float32)
        background += mask[..., None] * (colour - background)


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return math.exp(rng.uniform(math.log(limits[0]), math.log(limits[1])))


def overlap(box: Box, other: Box) -> float:
    """Intersection of two boxes over the area of the smaller box."""
    w = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    h = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    return max(w, 0) * max(h, 0) / min(box[2] * box[3], other[2] * other[3])


@cache
def photographs() -> dict[str, Image.Image]:
    """scikit-learn's sample photographs by file name."""
    from sklearn.datasets import load_sample_images  # slow import, only needed to generate images

    bundled = load_sample_images()
    return {Path(f).name: Image.fromarray(pixels) for f, pixels in zip(bundled.filenames, bundled.images, strict=True)}


def split_region(name: str, split: str) -> Box:
    """The half (x0, y0, x1, y1) of a photograph that a split uses: train the left, val the right."""
    width, height = photographs()[name].size
    return (0, 0, width // 2, height) if split == "train" else (width // 2, 0, width, height)


def digit_indices(split: str) -> list[int]:
    """Indices into load_digits that a split uses: val every fifth of each class, train the others."""
    count = dict.fromkeys(range(NUM_CLASSES), 0)
    indices = []
    for index, label in enumerate(_load_digits()[1]):
        if (count[label] % 5 == 0) == (split == "val"):
            indices.append(index)
        count[label] += 1
    return indices


@cache
def digit_mask(index: int, shuffled: bool) -> Image.Image:
    """Upscaled mask of a digit, padded. `shuffled`: permute its 16 blocks of 2x2 pixels."""
    small = _load_digits()[0][index]
    if shuffled:
        blocks = small.reshape(4, 2, 4, 2).swapaxes(1, 2).reshape(16, 2, 2)[BLOCK_PERMUTATION]
        small = blocks.reshape(4, 4, 2, 2).swapaxes(1, 2).reshape(8, 8)
    padded = Image.fromarray((np.pad(small, 1) * (255 / 16)).round().astype(np.uint8))
    large = padded.resize((padded.width * UPSCALE, padded.height * UPSCALE), Image.Resampling.BICUBIC)
    return large.point(CONTRAST_LUT)


@cache
def _load_digits() -> tuple[NDArray[np.float64], list[int]]:
    """scikit-learn's digits: images (N, 8, 8) and labels."""
    from sklearn.datasets import load_digits  # slow import, only needed to generate images

    bundled = load_digits()
    return bundled.images, bundled.target.tolist()
