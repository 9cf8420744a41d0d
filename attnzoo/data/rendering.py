"""Rendering of synthetic digit images."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnzoo.data.checks import check_option

NUM_DIGITS = 10
# The corners of an object's box that hold a 0, by its class; the other two hold a 1.
ARRANGEMENTS = {
    "top": ("top left", "top right"),
    "bottom": ("bottom left", "bottom right"),
    "left": ("top left", "bottom left"),
    "right": ("top right", "bottom right"),
    "falling": ("top left", "bottom right"),
    "rising": ("bottom left", "top right"),
}
CORNERS = ("top left", "top right", "bottom left", "bottom right")
Box = tuple[int, int, int, int]  # x, y, w, h in pixels
Mask = NDArray[np.float32]  # (h, w) in 0…1

UPSCALE = 4  # from the digits' 8x8 pixels to the masks that are rotated and scaled
MAX_PLACEMENT_ATTEMPTS = 40  # per object
# Look-up tables for mask values 0 … 255. The first sharpens edges blurred by interpolation.
CONTRAST_LUT = [min(max(round((value - 48) * 1.7), 0), 255) for value in range(256)]
THRESHOLD_LUT = [255 * (value >= 64) for value in range(256)]
BLOCK_PERMUTATION = [(7 * block + 3) % 16 for block in range(16)]
LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """Appearance of the images. Ranges are a minimum and a maximum.

    `image_size`: side in pixels. `objects`: objects per image; those that cannot be placed are skipped. `sizes`: longer
    side of an object's box in pixels, log-uniform. `aspect`: factor on width over height, log-uniform. `elongation`:
    factor by which upright digits are stretched before they are rotated, log-uniform. `rotation`: maximum angle of
    digits in degrees. `max_overlap`: maximum intersection of two boxes over the smaller box. `clutter`: distractors per
    image: digits with shuffled blocks, not annotated. `contrast`: luminance difference to the background, of 255.
    `tint`: maximum shift of an object's red, green and blue, of 255, which leaves its luminance as it is. `noise`:
    standard deviation, of 255.

    `classes`: "digit": an object is a digit, its class one of ten. "arrangement": an object is a 0 in two corners of
    its box and a 1 in the others, and its class, one of six, says which (`ARRANGEMENTS`); one part alone leaves three.
    `part_size`: longer side in pixels of these parts and of the distractors among them.
    """

    image_size: int = 64
    objects: tuple[int, int] = (2, 4)
    sizes: tuple[float, float] = (10.0, 28.0)
    aspect: tuple[float, float] = (0.85, 1.2)
    elongation: tuple[float, float] = (1.0, 1.0)
    rotation: float = 20.0
    max_overlap: float = 0.1
    clutter: tuple[int, int] = (0, 0)
    contrast: tuple[float, float] = (70.0, 150.0)
    tint: float = 60.0
    noise: float = 3.0
    classes: Literal["digit", "arrangement"] = "digit"
    part_size: float = 10.0

    def __post_init__(self) -> None:
        check = check_dataset_option
        check("image_size", self.image_size, 16 <= self.image_size <= 4096, "from 16 to 4096 pixels")
        least = {"objects": 0, "clutter": 0, "sizes": 4, "aspect": 0.1, "elongation": 1, "contrast": 0}
        for name, limit in least.items():
            low, high = getattr(self, name)
            check(name, [low, high], limit <= low <= high, f"two ascending numbers of at least {limit}")
        check("sizes", list(self.sizes), self.sizes[1] <= self.image_size, f"at most image_size = {self.image_size}")
        check("contrast", list(self.contrast), self.contrast[1] <= 255, "at most 255")
        check("aspect", list(self.aspect), self.aspect[1] <= 10, "at most 10")
        check("elongation", list(self.elongation), self.elongation[1] <= 10, "at most 10")
        check("rotation", self.rotation, 0 <= self.rotation <= 180, "from 0 to 180 degrees")
        check("max_overlap", self.max_overlap, 0 <= self.max_overlap <= 1, "a fraction from 0 to 1")
        check("tint", self.tint, 0 <= self.tint <= 255, "from 0 to 255")
        check("noise", self.noise, self.noise >= 0, "at least 0")
        if self.classes == "arrangement":
            shorter = self.sizes[0] * min(self.aspect[0], 1 / self.aspect[1])
            allowed = f"from 4 to {shorter / 2:.4g}, half the shorter side of the smallest object"
            check("part_size", self.part_size, 4 <= self.part_size <= shorter / 2, allowed)

    @property
    def class_names(self) -> list[str]:
        """In the order of the labels."""
        return list(ARRANGEMENTS) if self.classes == "arrangement" else [str(label) for label in range(NUM_DIGITS)]


def check_dataset_option(name: str, value: Any, ok: bool, expected: str) -> None:
    """Raise UserError for the option `name` of a data set unless `ok`."""
    check_option(f"data.dataset.{name}", value, ok, expected)


@dataclass(frozen=True)
class SceneObject:
    """An object in a scene: class, tight box, and the indices into load_digits of its digits."""

    label: int
    box: Box
    sources: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Scene:
    """`pixels` (image_size, image_size, 3) uint8, `crop_box` (x0, y0, x1, y1) in the photograph, and the objects."""

    pixels: NDArray[np.uint8]
    photo: str
    crop_box: Box
    objects: list[SceneObject]


@dataclass(frozen=True, eq=False)
class Drawing:
    """An object that is not placed yet: label, `size` (w, h) of its box, sources, and the (left, top, mask) in it."""

    label: int
    size: tuple[int, int]
    sources: tuple[int, ...]
    masks: list[tuple[int, int, Mask]]


class SceneRenderer:
    """Renders scenes of one split from its digits and its halves of the photographs."""

    def __init__(self, options: SceneOptions, split: str):
        self.options = options
        self.digits = digit_indices(split)
        self.labels = _load_digits()[1]
        self.by_label = {label: [i for i in self.digits if self.labels[i] == label] for label in range(NUM_DIGITS)}
        # Crop first: resize with `box` would sample pixels outside the region.
        regions = {name: split_region(name, split) for name in sorted(photographs())}
        self.photos = [(name, region[0], photographs()[name].crop(region)) for name, region in regions.items()]

    def render(self, rng: np.random.Generator) -> Scene:
        """One scene, determined by the generator's state and the options."""
        pixels, photo, crop_box = self._background(rng)
        boxes: list[Box] = []
        objects = self._place(rng, self.options.objects, self._object, boxes)
        clutter = self._place(rng, self.options.clutter, self._distractor, boxes)
        for (x, y, _, _), drawing in clutter + objects:
            for left, top, mask in drawing.masks:
                self._paste(rng, pixels, x + left, y + top, mask)
        pixels += self.options.noise * rng.standard_normal(pixels.shape, np.float32)
        return Scene(
            pixels.round().clip(0, 255).astype(np.uint8),
            photo,
            crop_box,
            [SceneObject(drawing.label, box, drawing.sources) for box, drawing in objects],
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
        self,
        rng: np.random.Generator,
        count: tuple[int, int],
        draw: Callable[[np.random.Generator], Drawing],
        boxes: list[Box],
    ) -> list[tuple[Box, Drawing]]:
        """New objects and their boxes, which are appended to `boxes`."""
        size = self.options.image_size
        objects = []
        for _ in range(int(rng.integers(count[0], count[1], endpoint=True))):
            drawing = draw(rng)
            w, h = drawing.size
            corners = rng.integers(0, (size - w, size - h), (MAX_PLACEMENT_ATTEMPTS, 2), endpoint=True)
            for x, y in corners.tolist():
                box = (x, y, w, h)
                if all(overlap(box, other) <= self.options.max_overlap for other in boxes):
                    boxes.append(box)
                    objects.append((box, drawing))
                    break
        return objects

    def _object(self, rng: np.random.Generator) -> Drawing:
        if self.options.classes == "arrangement":
            return self._arrangement(rng)
        index = self._draw_digit(rng)
        return self._single(index, self._mask(rng, index))

    def _distractor(self, rng: np.random.Generator) -> Drawing:
        index = self._draw_digit(rng)
        long_side = self.options.part_size if self.options.classes == "arrangement" else None
        return self._single(index, self._mask(rng, index, long_side, shuffled=True))

    def _draw_digit(self, rng: np.random.Generator, label: int | None = None) -> int:
        """An index into load_digits, of any class by default."""
        digits = self.digits if label is None else self.by_label[label]
        return digits[int(rng.integers(len(digits)))]

    def _single(self, index: int, mask: Mask) -> Drawing:
        return Drawing(self.labels[index], (mask.shape[1], mask.shape[0]), (index,), [(0, 0, mask)])

    def _arrangement(self, rng: np.random.Generator) -> Drawing:
        """Four digits in the corners of a box."""
        label = int(rng.integers(len(ARRANGEMENTS)))
        zeros = list(ARRANGEMENTS.values())[label]
        aspect = _log_uniform(rng, self.options.aspect)
        w, h = _sides(_log_uniform(rng, self.options.sizes), aspect)
        sources, masks = [], []
        for corner in CORNERS:
            index = self._draw_digit(rng, 0 if corner in zeros else 1)
            mask = self._mask(rng, index, self.options.part_size)
            left = 0 if "left" in corner else w - mask.shape[1]
            top = 0 if "top" in corner else h - mask.shape[0]
            sources.append(index)
            masks.append((left, top, mask))
        return Drawing(label, (w, h), tuple(sources), masks)

    def _mask(
        self, rng: np.random.Generator, index: int, long_side: float | None = None, shuffled: bool = False
    ) -> Mask:
        """The digit stretched, rotated, scaled and cropped to its strokes."""
        upright = digit_mask(index, shuffled)
        if self.options.elongation != (1, 1):  # no random number: images of the defaults stay as they were
            stretch = _log_uniform(rng, self.options.elongation)
            upright = upright.resize((upright.width, round(upright.height * stretch)), Image.Resampling.BICUBIC)
        rotation = self.options.rotation
        rotated = upright.rotate(rng.uniform(-rotation, rotation), Image.Resampling.BICUBIC, expand=True)
        bbox = rotated.point(THRESHOLD_LUT).getbbox()
        assert bbox is not None  # no digit is blank
        aspect = _log_uniform(rng, self.options.aspect) * (bbox[2] - bbox[0]) / (bbox[3] - bbox[1])
        w, h = _sides(_log_uniform(rng, self.options.sizes) if long_side is None else long_side, aspect)
        scaled = rotated.resize((w, h), Image.Resampling.BILINEAR, box=bbox)
        return np.asarray(scaled).astype(np.float32) / np.float32(255)

    def _paste(self, rng: np.random.Generator, pixels: NDArray[np.float32], x: int, y: int, mask: Mask) -> None:
        """Blend the mask into `pixels` in a random colour, lighter or darker than the background."""
        h, w = mask.shape
        background = pixels[y : y + h, x : x + w]
        luminance = float(background.mean((0, 1)) @ LUMA_WEIGHTS)
        contrast = rng.uniform(*self.options.contrast)
        headroom = {1.0: 255 - luminance, -1.0: luminance}
        signs = [sign for sign, room in headroom.items() if room >= contrast]
        signs = signs or [max(headroom, key=lambda sign: headroom[sign])]
        target = np.clip(luminance + float(rng.choice(signs)) * contrast, 0, 255)
        tint = rng.uniform(-self.options.tint, self.options.tint, 3)
        colour = np.clip(target + tint - tint @ LUMA_WEIGHTS, 0, 255).astype(np.float32)
        background += mask[..., None] * (colour - background)


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return math.exp(rng.uniform(math.log(limits[0]), math.log(limits[1])))


def _sides(long_side: float, aspect: float) -> tuple[int, int]:
    """Width and height in pixels, at least 2, of a box of `aspect`, width over height."""
    return max(round(long_side * min(1, aspect)), 2), max(round(long_side * min(1, 1 / aspect)), 2)


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
    count = dict.fromkeys(range(NUM_DIGITS), 0)
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
