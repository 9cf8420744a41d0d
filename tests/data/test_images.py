"""Image files that cannot be read."""

import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from attnzoo.data import images
from attnzoo.data.images import ImageReader, check_image, header_error
from attnzoo.errors import UserError


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, make) -> None:
    make(tmp_path / "0.png")
    with pytest.raises(UserError, match=r"/0\.png: not a regular file$"):
        check_image(tmp_path / "0.png", 1, 1)


def save(path: Path, size: tuple[int, int]) -> Path:
    Image.new("RGB", size).save(path)
    return path


def test_number_of_pixels_has_a_limit_that_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "0.png", (100, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(images, "_set_pixel_limit", images._set_pixel_limit.__wrapped__)
    with pytest.raises(UserError, match=r"0\.png: more than 2,000 pixels; set ATTNZOO_MAX_PIXELS to read it"):
        check_image(path, 30, 100)
    error = header_error(str(path))
    assert error is not None
    assert error.reason.startswith("more than 2,000 pixels")
    monkeypatch.setenv("ATTNZOO_MAX_PIXELS", "6000")
    check_image(path, 30, 100)
    monkeypatch.setenv("ATTNZOO_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="ATTNZOO_MAX_PIXELS = 'many': expected a number of pixels"):
        check_image(path, 30, 100)


@pytest.mark.parametrize(
    "error", [KeyError("tag"), struct.error("short"), zlib.error("bad"), MemoryError(), IndexError()]
)
def test_whatever_pillow_raises_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = save(tmp_path / "0.png", (4, 4))

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(UserError, match=rf"0\.png: .* damaged or unsupported \({type(error).__name__}"):
        ImageReader().read(path, 4, 4)
