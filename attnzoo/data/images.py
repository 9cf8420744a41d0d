"""Read images of the usual formats as upright 8-bit RGB."""

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import EpsImagePlugin, ExifTags, Image, ImageOps, TiffImagePlugin
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from attnzoo.errors import UserError, describe

PIXEL_LIMIT = "ATTNZOO_MAX_PIXELS"  # environment variable: the most pixels of an image that is decoded
# Not those for which Pillow runs other programs (EPS), and not documents, films and icons.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF", "TGA")
MAX_DECODED_BYTES = 256 * 2**20  # of data sets that are held in memory or in a file of decoded images

EpsImagePlugin.gs_binary = False  # no Ghostscript, where other libraries open images with Pillow

log = logging.getLogger(__name__)


def open_image(path: str | Path) -> Image.Image:
    """The image in a file, not yet decoded.

    Raises UserError for a file that is missing, may not be read or is no regular file, and for more pixels than
    Pillow's limit or ATTNZOO_MAX_PIXELS, and whatever else Pillow raises, also for a file of none of FORMATS.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path}: not a regular file")  # a pipe would never end
    configure_pillow()
    try:
        return Image.open(path, formats=_formats())
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        message = f"more than {limit:,} pixels; set {PIXEL_LIMIT} to read it if you trust it"
        raise UserError(f"{path}: {message}") from None
    except FileNotFoundError:
        raise UserError(f"{path}: the image file is missing") from None
    except OSError as error:
        if error.errno is None:  # Pillow's own: the file is damaged
            raise
        raise UserError(f"{path}: {error.strerror}") from None


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF depends on how Pillow was built


def suffixes() -> set[str]:
    """Of image files that can be read, in lower case."""
    return {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}


@cache
def configure_pillow() -> None:
    """Set the limit of pixels, and silence Pillow's warnings. Raises UserError for a limit that is no number.

    Pillow warns of half as many pixels, which are read, and of damaged metadata, beside which the pixels are read or
    refused with an error.
    """
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    logging.getLogger(TiffImagePlugin.__name__).setLevel(logging.CRITICAL)
    if value := os.environ.get(PIXEL_LIMIT):
        if not value.isdecimal() or int(value) < 2:
            raise UserError(f"{PIXEL_LIMIT} = {value!r}: expected a number of pixels")
        Image.MAX_IMAGE_PIXELS = int(value) // 2  # Pillow refuses more than twice as many


class ImageReader:
    """Reads the images of one data set; warns once if 16-bit files seem to hold 12-bit data."""

    def __init__(self) -> None:
        configure_pillow()  # for data sets that open their images themselves
        self._warned = torch.zeros((), dtype=torch.bool).share_memory_()  # with loader workers

    def read(self, path: Path, height: int, width: int) -> tv_tensors.Image:
        """The image as (3, height, width) uint8 RGB, of the size in pixels that its annotation states.

        EXIF orientation is applied unless only the unrotated image matches the annotated size, i.e. boxes refer to the
        unrotated image (as in COCO). Raises UserError naming the file if it is missing, damaged or of another size.
        """
        with _open(path) as image:
            _check_size(path, image, height, width)
            rgb = self.to_rgb(image, lambda: str(path), transpose=_upright_size(image) == (width, height))
            return tv_tensors.Image(F.pil_to_tensor(rgb))

    def read_upright(self, path: Path) -> Image.Image:
        """The image as 8-bit RGB with its EXIF orientation applied. Raises UserError as `read` does."""
        with _open(path) as image:
            return self.to_rgb(image, lambda: str(path))

    def to_rgb(self, image: Image.Image, name: Callable[[], str], transpose: bool = True) -> Image.Image:
        """The image as 8-bit RGB; `transpose`: with its EXIF orientation applied. `name` is used in a warning.

        16-bit images are scaled by 1/257. Raises ValueError for floating-point images and 32-bit images with values
        outside 0…65535, whose range is unknown, and what Pillow's decoders raise.
        """
        image = ImageOps.exif_transpose(image) if transpose else image
        check_mode(image.mode)
        if image.mode.startswith("I"):  # Pillow's own conversion would clip at 255
            values = np.asarray(image, dtype=np.int64)
            if values.min() < 0 or values.max() > 65535:
                raise ValueError(f"values from {values.min()} to {values.max()}: expected at most 16 bits")
            self._warn_of_low_range(int(values.max()), name)
            image = Image.fromarray((values // 257).astype(np.uint8))
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")

    def _warn_of_low_range(self, largest: int, name: Callable[[], str]) -> None:
        if 0 < largest < 4096 and not self._warned:
            self._warned.fill_(True)
            log.warning(
                "%s: a 16-bit image with values up to %d; if it holds 12-bit data, scale the files of this data set to "
                "16 bits, or they are nearly black (other files are not reported)",
                name(),
                largest,
            )


@cache
def check_mode(mode: str) -> None:
    """Raise ValueError for a pixel format that cannot be converted to RGB."""
    if mode == "F":
        raise ValueError("the value range of floating-point pixels is unknown")
    Image.new(mode, (1, 1)).convert("RGB")


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header of a file, with its EXIF orientation. Raises UserError if it is unreadable."""
    with _open(path) as image:
        check_mode(image.mode)
        return _upright_size(image)


def check_image(path: Path, height: int, width: int) -> None:
    """Raise UserError unless the header of the file gives the annotated size and a readable mode; reads no pixels."""
    with _open(path) as image:
        check_mode(image.mode)
        if image.size != (width, height):
            _check_size(path, image, height, width)


def decoded_images(path: Path, files: Sequence[Path], size: int) -> Tensor | None:
    """The square images `files`, (N, 3, size, size) uint8, as they are stored in `path`, which is written on first use.

    The file is mapped into memory, so that processes share it. None if it would be larger than MAX_DECODED_BYTES or
    cannot be written. Raises UserError if an image is missing or damaged.
    """
    shape = (len(files), 3, size, size)
    if math.prod(shape) > MAX_DECODED_BYTES:
        return None
    try:
        return _map_images(path, shape)
    except (OSError, ValueError):  # it does not exist, or is cut short
        pass
    reader = ImageReader()
    images = np.stack([reader.read(file, size, size).numpy() for file in files])
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.save(file, images)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        return _map_images(path, shape)
    except OSError:  # such as a cache that is shared and read-only
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        return None


def _map_images(path: Path, shape: tuple[int, ...]) -> Tensor:
    images = np.load(path, mmap_mode="c")  # copy on write: the file never changes
    if images.shape != shape or images.dtype != np.uint8:
        raise ValueError(f"{path}: {images.dtype} of shape {images.shape}")
    return torch.from_numpy(images)


class HeaderError(NamedTuple):
    """Why an image cannot be read; `damaged`: the file, not its pixel format."""

    reason: str
    damaged: bool


def header_error(path: str) -> HeaderError | None:
    """What the header of a file tells of an image that cannot be read; pixels are not decoded."""
    try:
        with open_image(path) as image:
            mode = image.mode
    except Exception as error:  # Pillow raises anything
        return HeaderError(reason_of(error, path), damaged=True)
    try:
        check_mode(mode)
    except ValueError as error:
        return HeaderError(str(error), damaged=False)
    return None


def reason_of(error: BaseException, path: str | Path) -> str:
    """Why the image in a file cannot be read, without the file's name."""
    return describe(error).removeprefix(f"{path}: ").removesuffix(f" {str(path)!r}")  # ours begin, Pillow's end with it


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    try:
        with open_image(path) as image:
            yield image
    except UserError:
        raise
    except Exception as error:  # Pillow raises anything
        raise UserError(f"{path}: the image file is damaged or unsupported ({reason_of(error, path)})") from error


def _check_size(path: Path, image: Image.Image, height: int, width: int) -> None:
    sizes = (image.size, _upright_size(image))
    if (width, height) not in sizes:
        actual = " or ".join(dict.fromkeys(f"{w}x{h}" for w, h in sizes))
        raise UserError(f"{path}: image size {actual} does not match the annotation ({width}x{height})")


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after EXIF orientation; orientations 5 to 8 swap the sides."""
    width, height = image.size
    return (height, width) if image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8) else (width, height)
