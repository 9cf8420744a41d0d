"""Images that users have, as upright 8-bit RGB: files, PIL images, arrays and tensors."""

from collections.abc import Iterable, Sequence
from functools import cache
from os import PathLike, fspath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from attnzoo.data.images import ImageReader, upright_size
from attnzoo.errors import UserError, describe
from attnzoo.paths import user_path

IMAGE_TYPES = (str, PathLike, Image.Image, np.ndarray, Tensor)
ImageLike = str | PathLike[str] | Image.Image | npt.NDArray[Any] | Tensor


def as_list(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """One or several images as a list; an array or a tensor of four dimensions is a batch.

    Raises TypeError for what are no images; the content of files and arrays is not looked at.
    """
    if isinstance(images, (np.ndarray, Tensor)):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, IMAGE_TYPES) or not isinstance(images, Iterable):
        images = [images]
    listed = list(images)
    for image in listed:
        _check_type(image)
    return listed


def _check_type(image: object) -> None:
    if not isinstance(image, IMAGE_TYPES):
        kind = type(image).__name__
        article = "an" if kind[0] in "aeiou" else "a"
        raise TypeError(f"{article} {kind} is not an image: expected a path, a PIL image, an array or a tensor")


def size_of(image: ImageLike) -> tuple[int, int]:
    """(height, width) in pixels of an upright image; of a file from its header. Raises UserError as `read_image`."""
    if isinstance(image, (str, PathLike)):
        width, height = upright_size(user_path(image))
        return height, width
    picture = read_image(image)
    return picture.height, picture.width


def read_image(image: ImageLike) -> Image.Image:
    """The image as upright 8-bit RGB.

    Raises UserError for a file that is missing, damaged or unsupported, and for an array that is not (h, w, 3) or
    (h, w), or a tensor that is not (3, h, w) or (1, h, w), of 8-bit integers or floating-point numbers in [0, 1];
    TypeError for anything else.
    """
    _check_type(image)
    if isinstance(image, (str, PathLike)):
        return _reader().read_upright(user_path(image))
    if isinstance(image, Image.Image):
        try:
            return _reader().to_rgb(image, lambda: "the image")
        except Exception as error:  # Pillow's decoders raise anything
            raise UserError(f"the image cannot be read ({error})") from error
    if isinstance(image, Tensor):
        return _from_array(image.detach().cpu().movedim(0, -1).numpy() if image.ndim == 3 else None, image)
    return _from_array(image, image)


@cache
def _reader() -> ImageReader:
    """One of all images: it warns once."""
    return ImageReader()


def cannot_run(image: ImageLike, size: tuple[int, int], error: Exception) -> UserError:
    """The error for an image of `size` (height, width) that a model does not run on, most often as it is too small."""
    name = f"{fspath(image)}: an" if isinstance(image, (str, PathLike)) else "an"
    height, width = size
    return UserError(f"{name} image of {width} x {height} pixels, on which the model does not run: {describe(error)}")


def _from_array(values: npt.NDArray[Any] | None, given: npt.NDArray[Any] | Tensor) -> Image.Image:
    """From an array (h, w, 3), (h, w, 1) or (h, w)."""
    if values is not None and values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values is None or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] != 3) or not values.size:
        expected = "(3, h, w)" if isinstance(given, Tensor) else "(h, w, 3) or (h, w)"
        kind = "a tensor" if isinstance(given, Tensor) else "an array"
        raise UserError(f"{kind} of shape {tuple(given.shape)} is not an image: expected {expected}")
    if np.issubdtype(values.dtype, np.floating):
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise UserError(
                f"floating-point pixels from {values.min():g} to {values.max():g}: expected 0 to 1, not normalised"
            )
        values = np.round(values.astype(np.float32) * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        raise UserError(f"pixels of type {given.dtype}: expected 8-bit integers, or floating-point numbers in [0, 1]")
    return Image.fromarray(np.ascontiguousarray(values)).convert("RGB")
