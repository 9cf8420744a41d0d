"""Image files that cannot be read."""

import contextlib
import os
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from attnzoo.data import images
from attnzoo.data.images import ImageReader, check_image, header_error
from attnzoo.errors import UserError


def make_socket(path: Path) -> None:
    with contextlib.chdir(path.parent):  # a socket's path has at most 107 bytes
        socket.socket(socket.AF_UNIX).bind(path.name)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, make_socket])
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
    monkeypatch.setattr(images, "configure_pillow", images.configure_pillow.__wrapped__)
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


def test_images_below_the_limit_are_read_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Pillow warned, in two lines, of those of 90 to 179 million pixels."""
    path = save(tmp_path / "0.png", (50, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(images, "configure_pillow", images.configure_pillow.__wrapped__)
    check_image(path, 30, 50)
    assert not recwarn.list


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "ICNS", "FLI"])
def test_other_formats_are_refused_whatever_their_suffix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Pillow ran Ghostscript on EPS files."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    path = tmp_path / "0.png"
    if kind == "FLI":
        path.write_bytes(b"\0" * 4 + b"\x11\xaf" + b"\0" * 122)
    else:
        Image.new("RGB", (32, 32)).save(path, kind)
    with pytest.raises(UserError, match=r"0\.png: the image file is damaged or unsupported \(cannot identify"):
        ImageReader().read_upright(path)
    assert kind != "EPS" or raised_by_pillow(path)
    assert not (tmp_path / "ran").exists()


def raised_by_pillow(path: Path) -> bool:
    """Whether Pillow itself, as other libraries call it, refuses to decode an EPS file."""
    with pytest.raises(OSError, match="Unable to locate Ghostscript"), Image.open(path) as image:
        image.load()
    return True


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "TGA"])
def test_usual_formats_are_read(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (8, 4)).save(tmp_path / "0", kind)
    assert ImageReader().read_upright(tmp_path / "0").size == (8, 4)
    assert {".jpg", ".png", ".tif"} <= images.suffixes()
    assert ".eps" not in images.suffixes()


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


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "0.png"
    path.symlink_to(path.name)
    with pytest.raises(UserError, match=r"0\.png: Too many levels of symbolic links$"):
        ImageReader().read_upright(path)
    error = header_error(str(path))
    assert error is not None
    assert error.reason == "Too many levels of symbolic links"
    path.unlink()
    save(path, (4, 4)).chmod(0)
    with another_user(), pytest.raises(UserError, match=r"0\.png: Permission denied$"):
        ImageReader().read_upright(path)


@contextlib.contextmanager
def another_user() -> Iterator[None]:
    """Not root, who may read everything, but with root's groups, so as to enter the folders of pytest."""
    is_root = os.geteuid() == 0
    os.seteuid(65534 if is_root else os.geteuid())
    try:
        yield
    finally:
        os.seteuid(0 if is_root else os.geteuid())


def test_the_file_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "0.png"
    path.write_bytes(b"")
    with pytest.raises(UserError) as refused:
        ImageReader().read_upright(path)
    assert str(refused.value).count(str(path)) == 1


TIFF = b"Exif\0\0MM\0*"
EXIF = {
    "cut short": TIFF + b"\0\0\0\x08\0\x05\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01\x12",
    "no offset": TIFF + b"\xff\xff\xff\xff",
    "too large": TIFF + b"\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\xff\0\0\xff\xff\0\0\0\0",
}


@pytest.mark.parametrize("exif", EXIF.values(), ids=EXIF)
def test_damaged_exif_is_passed_over_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, exif: bytes
) -> None:
    """Pillow warned, in two lines that do not name the file."""
    monkeypatch.setattr(images, "configure_pillow", images.configure_pillow.__wrapped__)
    Image.new("RGB", (8, 4)).save(tmp_path / "0.jpg", exif=exif)
    assert sorted(ImageReader().read_upright(tmp_path / "0.jpg").size) == [4, 8]
    assert not recwarn.list


def test_the_limit_is_checked_before_a_data_set_opens_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of timm open them without `open_image`."""
    monkeypatch.setattr(images, "configure_pillow", images.configure_pillow.__wrapped__)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setenv("ATTNZOO_MAX_PIXELS", "6000")
    ImageReader()
    assert Image.MAX_IMAGE_PIXELS == 3000
