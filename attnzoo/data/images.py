"""Read image files as 8-bit RGB with EXIF orientation applied."""

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from attnzoo.errors import UserError


def read_image(path: Path, height: int, width: int) -> tv_tensors.Image:
    """The image as (3, height, width) uint8 RGB, of the size in pixels that its annotation states.

    EXIF orientation is applied unless only the unrotated image matches the annotated size, i.e. boxes refer to the
    unrotated image (as in COCO). Raises UserError naming the file if it is missing, damaged or of another size.
    """
    try:
        with Image.open(path) as image:
            sizes = (image.size, _upright_size(image))
            if (width, height) not in sizes:
                actual = " or ".join(dict.fromkeys(f"{w}x{h}" for w, h in sizes))
                raise UserError(f"{path}: image size {actual} does not match the annotation ({width}x{height})")
            image.load()
            upright = ImageOps.exif_transpose(image) if sizes[1] == (width, height) else image
            return tv_tensors.Image(F.pil_to_tensor(_to_rgb(upright)))
    except FileNotFoundError:
        raise UserError(f"{path}: the image file is missing") from None
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's decoders raise
        raise UserError(f"{path}: the image file is damaged or unsupported ({error})") from error


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after EXIF orientation; orientations 5 to 8 swap the sides."""
    width, height = image.size
    return (height, width) if image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8) else (width, height)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("the value range of floating-point pixels is unknown")
    if image.mode.startswith("I"):  # 16 bits per pixel; Pillow's own conversion would clip at 255
        values = np.asarray(image, dtype=np.int64)
        image = Image.fromarray((values // 257).clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
