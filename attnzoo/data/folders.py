"""Class folders of images: their classes, the number of images of each, and a hash of the list of files."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import timm.data
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torchvision.datasets import DatasetFolder, ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from attnzoo.data.images import open_image
from attnzoo.errors import UserError
from attnzoo.paths import real_path

log = logging.getLogger(__name__)

THREADS, CHUNK = 32, 256  # of listing files


class FolderContent(NamedTuple):
    """The images below `root`; `classes` maps names to labels, `images` labels to numbers of images.

    `digest` is a hash of the sorted paths below `root`, sizes in bytes and labels of the images.
    """

    root: Path
    classes: dict[str, int]
    images: Counter[int]
    digest: str

    def names(self, labels: set[int]) -> list[str]:
        """The class names of labels."""
        return sorted(name for name, label in self.classes.items() if label in labels)


_CONTENTS: dict[str, tuple[dict[str, int], FolderContent]] = {}  # with the modification times of the folders


def folder_content(key: str, open_source: Callable[[], Any]) -> FolderContent:
    """The content of the `DatasetFolder` or timm data set that `open_source` opens; `key` identifies it.

    A process lists the files once, and again if files were added or removed.
    """
    if key in _CONTENTS:
        times, content = _CONTENTS[key]
        if times == _modification_times(times):
            return content
    reader = folder_reader(open_source())
    assert reader is not None
    samples = sorted(reader.samples)
    sha = hashlib.blake2b(digest_size=8)
    for (path, label), size in zip(samples, _sizes([path for path, _ in samples]), strict=True):
        name = path.removeprefix(str(reader.root)).lstrip("/")
        sha.update(f"{name}\0{size}\0{label}\n".encode(errors="surrogateescape"))
    images = Counter(label for _, label in samples)
    content = FolderContent(Path(reader.root), dict(reader.class_to_idx), images, sha.hexdigest())
    _CONTENTS[key] = _modification_times(_folders(reader)), content
    return content


def folder_reader(source: Any) -> Any:
    """What reads images from class folders for a data set (`root`, `samples`, `class_to_idx`), or None."""
    reader = source.reader if isinstance(source, timm.data.ImageDataset) else source
    return reader if isinstance(reader, (DatasetFolder, ReaderImageFolder)) else None


def _folders(reader: Any) -> set[str]:
    """All folders in which the images of a class may be added."""
    paths = {os.path.dirname(path) for path, _ in reader.samples}
    return {str(reader.root), *paths, *(entry.path for entry in os.scandir(reader.root) if _is_folder(entry))}


def _modification_times(folders: Iterable[str]) -> dict[str, int]:
    return {folder: os.stat(folder).st_mtime_ns if os.path.isdir(folder) else -1 for folder in folders}


def _sizes(paths: list[str]) -> Iterator[int]:
    """In bytes, by threads, since a network file system may take a millisecond for each."""
    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:
        yield from chain.from_iterable(pool.map(lambda chunk: [_size(path) for path in chunk], chunks))


def _size(path: str) -> int:
    """In bytes; -1 for a file that is gone, which is an error when it is read."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


class ClassFolders(ImageFolder):
    """Images in class folders, without files and folders whose names begin with a dot."""

    def __init__(self, root: str):
        super().__init__(root, loader=open_image, allow_empty=True)

    @staticmethod
    def make_dataset(
        directory: str | Path, class_to_idx: dict[str, int] | None = None, *args: Any, **options: Any
    ) -> list[tuple[str, int]]:
        samples = []
        for name, label in sorted((class_to_idx or {}).items()):
            paths = [entry.path for entry in image_files(os.path.join(directory, name))]
            samples += [(path, label) for path in sorted(paths, key=os.path.split)]
        return samples

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        classes = class_names(directory)
        return classes, {name: label for label, name in enumerate(classes)}

    def keep(self, kept: Sequence[bool]) -> None:
        """Drop the images that are not `kept`."""
        samples: list[tuple[str, int]] = self.samples  # type: ignore[has-type]
        self.samples = self.imgs = [sample for sample, keep in zip(samples, kept, strict=True) if keep]
        self.targets = [label for _, label in self.samples]


def class_names(folder: str | Path) -> list[str]:
    """The names of the class folders in a folder, sorted. Raises UserError if it cannot be listed."""
    return sorted(entry.name for entry in _entries(folder) if _is_folder(entry) and not entry.name.startswith("."))


def image_files(folder: str, hidden: bool = False) -> Iterator[os.DirEntry[str]]:
    """The files below a folder with the suffix of an image, also behind links; `hidden`: names with a dot too.

    Raises UserError for a folder that cannot be listed, instead of leaving out its images, and for a link to a folder
    that contains it, behind which every image would be found again and again.
    """
    path = real_path(folder)
    yield from _image_files(folder, hidden, frozenset(_identity(os.stat(each)) for each in (path, *path.parents)))


def _image_files(folder: str, hidden: bool, above: frozenset[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    folders = []
    for entry in _entries(folder):
        if entry.name.startswith(".") and not hidden:
            continue
        if _is_folder(entry):
            folders.append(entry)
        elif has_file_allowed_extension(entry.name, IMG_EXTENSIONS):
            yield entry
    for entry in folders:
        identity = _identity(entry.stat())
        if identity in above:
            message = f"data.dataset: {entry.path} is a link to a folder that contains it; remove it"
            raise UserError(message, key="data.dataset")
        yield from _image_files(entry.path, hidden, above | {identity})


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"data.dataset: {folder}: {error.strerror}", key="data.dataset") from None


@cache
def check_timm_folder(root: str) -> None:
    """Raise UserError for what timm waits for, such as a pipe, searches without end, or leaves out without a word."""
    for entry in image_files(root, hidden=True):
        is_file = entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path)
        if not is_file and os.path.exists(entry.path):
            raise UserError(f"data.dataset: {entry.path}: not a regular file", key="data.dataset")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Unlike `entry.is_dir()`, False for a link that leads to itself or into a folder that may not be entered."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def open_folder(path: Path) -> ClassFolders:
    """The images in the class folders of `path`."""
    return ClassFolders(str(path))


def skip_unreadable(source: ClassFolders, read: Callable[[int], Any], path: Path) -> None:
    """Drop the images for which `read`, by their index, raises UserError; logs their number and the first.

    Raises UserError if none is left.
    """

    def read_error(index: int) -> str | None:
        try:
            read(index)
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        errors = list(pool.map(read_error, range(len(source))))
    if bad := [error for error in errors if error]:
        log.warning("%s: %d of %d images are skipped; the first: %s", path, len(bad), len(errors), bad[0])
    if len(bad) == len(errors):
        raise UserError(f"data.dataset: {path}: no image can be read; the first: {bad[0]}", key="data.dataset")
    source.keep([error is None for error in errors])
