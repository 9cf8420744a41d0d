"""How one image of `digit_scenes` and `digits` is drawn."""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnzoo.errors import UserError

CLASSES = 10
Box = tuple[int, int, int, int]  # x, y, w, h in pixels

UPSCALE = 4  # from the digits' 8x8 pixels to the masks that are turned and shrunk
MAX_PLACEMENT_ATTEMPTS = 40  # places that are tried for one object
# Tables over mask values 0 … 255. Edges steeper than interpolation gives make strokes look drawn, not out of focus.
CONTRAST_LUT = [min(max(round((value - 48) * 1.7), 0), 255) for value in range(256)]
THRESHOLD_LUT = [255 * (value >= 64) for value in range(256)]
BLOCK_PERMUTATION = [(7 * block + 3) % 16 for block in range(16)]
LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """What images look like.

    `image_size`: side in pixels. `objects`: fewest and most digits per image; one that finds no place is left out.
    `clutter`: fewest and most distractors, which are digits shuffled into pieces and shuffled, not annotated.
    `sizes`: of a digit's box, longer side in pixels, log-uniform. `aspect`: factor of width over height, log-uniform.
    `rotation`: up to this many degrees either way. `contrast`: difference in luminance to the background, of 255.
    `max_overlap`: of any two boxes, as a share of the smaller. `noise`: standard deviation, of 255.
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
        require("image_size", self.image_size, 16 <= self.image_size <= 4096, "from 16 to 4096 pixels")
        for name, least in (("objects", 0), ("clutter", 0), ("sizes", 4), ("aspect", 0.1), ("contrast", 0)):
            low, high = getattr(self, name)
            require(name, [low, high], least <= low <= high, f"two numbers from {least}, the smaller first")
        require("sizes", list(self.sizes), self.sizes[1] <= self.image_size, f"at most image_size = {self.image_size}")
        require("contrast", list(self.contrast), self.contrast[1] <= 255, "at most 255")
        require("aspect", list(self.aspect), self.aspect[1] <= 10, "at most 10")
        require("rotation", self.rotation, 0 <= self.rotation <= 180, "from 0 to 180 degrees")
        require("max_overlap", self.max_overlap, 0 <= self.max_overlap <= 1, "a share from 0 to 1")
        require("noise", self.noise, self.noise >= 0, "at least 0")


def require(name: str, value: Any, holds: bool, expected: str) -> None:
    """Raise UserError for an option `name` of a data set unless `holds`."""
    if not holds:
        raise UserError(f"data.dataset.{name} = {value}: expected {expected}")


@dataclass(frozen=True)
class Digit:
    """A pasted digit: class, tight box, and number in load_digits."""

    label: int
    box: Box
    source: int


@dataclass(frozen=True, eq=False)
class Scene:
    """`pixels` (side, side, 3) uint8; the photograph, the `region` (x0, y0, x1, y1) of it, and the digits on it."""

    pixels: NDArray[np.uint8]
    photo: str
    region: tuple[int, int, int, int]
    digits: list[Digit]


class SceneRenderer:
    """Draws the scenes of one split from the digits and halves of photographs that belong to it."""

    def __init__(self, look: SceneOptions, split: str):
        self.look = look
        self.digits = digit_ids(split)
        self.labels = _load_digits()[1]
        # Cut first: scaling a region of the whole photograph would read a little beyond the region's edge.
        halves = {name: split_region(name, split) for name in sorted(photographs())}
        self.photos = [(name, half[0], photographs()[name].crop(half)) for name, half in halves.items()]

    def render(self, rng: np.random.Generator) -> Scene:
        """One scene, a function of the generator's state and the options alone."""
        pixels, photo, region = self._background(rng)
        placed: list[Box] = []
        digits = self._place(rng, self.look.objects, placed)
        clutter = self._place(rng, self.look.clutter, placed, shuffled=True)
        for _, box, mask in clutter + digits:
            self._paste(rng, pixels, box, mask)
        pixels += self.look.noise * rng.standard_normal(pixels.shape, np.float32)
        return Scene(
            pixels.round().clip(0, 255).astype(np.uint8),
            photo,
            region,
            [Digit(self.labels[source], box, source) for source, box, _ in digits],
        )

    def _background(self, rng: np.random.Generator) -> tuple[NDArray[np.float32], str, tuple[int, int, int, int]]:
        """A square of a quarter to three quarters of the half photograph's shorter side, scaled to the image."""
        name, left, half = self.photos[int(rng.integers(len(self.photos)))]
        side = int(rng.uniform(0.25, 0.75) * min(half.size))
        x, y = rng.integers(0, (half.width - side, half.height - side), endpoint=True).tolist()
        size = (self.look.image_size, self.look.image_size)
        crop = half.resize(size, Image.Resampling.BILINEAR, box=(x, y, x + side, y + side), reducing_gap=2.0)
        return np.array(crop, dtype=np.float32), name, (left + x, y, left + x + side, y + side)

    def _place(
        self, rng: np.random.Generator, count: tuple[int, int], placed: list[Box], shuffled: bool = False
    ) -> list[tuple[int, Box, NDArray[np.float32]]]:
        """DatasetSpec, box and mask of new objects; `placed` grows by their boxes."""
        found = []
        for _ in range(int(rng.integers(count[0], count[1], endpoint=True))):
            source = self.digits[int(rng.integers(len(self.digits)))]
            mask = self._mask(rng, source, shuffled)
            h, w = mask.shape
            places = rng.integers(
                0, (self.look.image_size - w, self.look.image_size - h), (MAX_PLACEMENT_ATTEMPTS, 2), endpoint=True
            )
            for x, y in places.tolist():
                box = (x, y, w, h)
                if all(overlap(box, other) <= self.look.max_overlap for other in placed):
                    placed.append(box)
                    found.append((source, box, mask))
                    break
        return found

    def _mask(self, rng: np.random.Generator, source: int, shuffled: bool) -> NDArray[np.float32]:
        """The digit turned and scaled to its size, (h, w) in 0…1, cropped to its ink."""
        look = self.look
        turned = digit_mask(source, shuffled).rotate(
            rng.uniform(-look.rotation, look.rotation), Image.Resampling.BICUBIC, expand=True
        )
        ink = turned.point(THRESHOLD_LUT).getbbox()
        assert ink is not None  # every digit has ink
        aspect = _log_uniform(rng, look.aspect) * (ink[2] - ink[0]) / (ink[3] - ink[1])
        longer = _log_uniform(rng, look.sizes)
        w, h = longer * min(1, aspect), longer * min(1, 1 / aspect)
        scaled = turned.resize((max(round(w), 2), max(round(h), 2)), Image.Resampling.BILINEAR, box=ink)
        return np.asarray(scaled).astype(np.float32) / np.float32(255)

    def _paste(
        self, rng: np.random.Generator, pixels: NDArray[np.float32], box: Box, mask: NDArray[np.float32]
    ) -> None:
        """Blend the mask in, in a random colour that is lighter or darker than what lies under it."""
        x, y, w, h = box
        under = pixels[y : y + h, x : x + w]
        luminance = float(under.mean((0, 1)) @ LUMA_WEIGHTS)
        contrast = rng.uniform(*self.look.contrast)
        room = {1.0: 255 - luminance, -1.0: luminance}
        signs = [sign for sign, space in room.items() if space >= contrast] or [max(room, key=lambda s: room[s])]
        target = np.clip(luminance + float(rng.choice(signs)) * contrast, 0, 255)
        tint = rng.uniform(-60, 60, 3)
        colour = np.clip(target + tint - tint @ LUMA_WEIGHTS, 0, 255).astype(np.float32)
        under += mask[..., None] * (colour - under)


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return math.exp(rng.uniform(math.log(limits[0]), math.log(limits[1])))


def overlap(one: Box, other: Box) -> float:
    """The intersection of two boxes as a share of the smaller box."""
    w = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    h = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(w, 0) * max(h, 0) / min(one[2] * one[3], other[2] * other[3])


@cache
def photographs() -> dict[str, Image.Image]:
    """scikit-learn's sample photographs by file name."""
    from sklearn.datasets import load_sample_images  # as in _load_digits

    bundled = load_sample_images()
    return {Path(f).name: Image.fromarray(pixels) for f, pixels in zip(bundled.filenames, bundled.images, strict=True)}


def split_region(name: str, split: str) -> Box:
    """x0, y0, x1, y1 of the half that belongs to a split: the left one to train, the right one to val."""
    width, height = photographs()[name].size
    return (0, 0, width // 2, height) if split == "train" else (width // 2, 0, width, height)


def digit_ids(split: str) -> list[int]:
    """The numbers in load_digits that belong to a split: every fifth of each class to val, the others to train."""
    count = dict.fromkeys(range(10), 0)
    ids = []
    for number, label in enumerate(_load_digits()[1]):
        if (count[label] % 5 == 0) == (split == "val"):
            ids.append(number)
        count[label] += 1
    return ids


@cache
def digit_mask(source: int, shuffled: bool) -> Image.Image:
    """A digit as an enlarged mask with a margin; `shuffled`: its 16 blocks of 2x2 pixels shuffled."""
    small = _load_digits()[0][source]
    if shuffled:
        blocks = small.reshape(4, 2, 4, 2).swapaxes(1, 2).reshape(16, 2, 2)[BLOCK_PERMUTATION]
        small = blocks.reshape(4, 4, 2, 2).swapaxes(1, 2).reshape(8, 8)
    padded = Image.fromarray((np.pad(small, 1) * (255 / 16)).round().astype(np.uint8))
    large = padded.resize((padded.width * UPSCALE, padded.height * UPSCALE), Image.Resampling.BICUBIC)
    return large.point(CONTRAST_LUT)


@cache
def _load_digits() -> tuple[NDArray[np.float64], list[int]]:
    """scikit-learn's digits, (N, 8, 8), and what each shows."""
    from sklearn.datasets import load_digits  # takes a second, and most processes find their images in the cache

    bundled = load_digits()
    return bundled.images, bundled.target.tolist()
