"""Folders in YOLO format: a text file beside each image, `class x y w h` with the centre and size as fractions."""

from pathlib import Path
from typing import Any

from attnzoo.errors import UserError
from attnzoo.files import read_text
from attnzoo.paths import user_path
from attnzoo.schema import yaml12
from attnzoo.userdata.content import (
    Content,
    Problem,
    Split,
    images_in,
    make_split,
    read_sizes,
    split_of,
    subfolders,
    use_test_as_val,
)

NAME_FILES = ("classes.txt", "obj.names")
Row = tuple[int, int, tuple[float, float, float, float], bool]


def find_yolo(root: Path) -> Path | None:
    """The `data.yaml` of a YOLO folder, the folder itself if it has labels without one, or None."""
    for path in sorted(root.glob("*.y*ml")):
        try:
            values = yaml12.read(path)
        except UserError:
            continue
        if "names" in values and "train" in values:
            return path
    labelled = (label for folder in _label_folders(root) for label in folder.glob("*.txt"))
    return root if next(labelled, None) is not None else None


def read_yolo(root: Path, source: Path) -> Content:
    """The data set of a `data.yaml`, or of the folders `images` and `labels` below `root`.

    The size of each image is read from its header. Polygons become their bounding boxes. Raises UserError if there is
    nothing to train on.
    """
    folders, names, notes = _from_yaml(source) if source.is_file() else _from_folders(root)
    folders, more = use_test_as_val({split: paths for split, paths in folders.items() if paths})
    if not folders.get("train"):
        raise UserError(f"{source}: no images of a training split")
    splits = {split: _split(source, paths, names) for split, paths in folders.items()}
    if not names:
        count = 1 + max((int(split.labels.max(initial=-1)) for split in splits.values()), default=-1)
        names = [f"class {i}" for i in range(count)]
        notes = (*notes, f"no class names found in data.yaml, {' or '.join(NAME_FILES)}")
    return Content(root, "yolo", names, splits, (*notes, *more))


def _label_folders(root: Path) -> list[Path]:
    return [folder for folder in subfolders(root, 3) if "labels" in folder.relative_to(root).parts]


def _from_yaml(path: Path) -> tuple[dict[str, list[Path]], list[str], tuple[str, ...]]:
    values = yaml12.read(path)
    names = values["names"]
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UserError(f"{path}: names: expected classes 0 … {len(names) - 1} without gaps")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: names: expected a list of class names, or a mapping of numbers to names")
    base = path.parent / user_path(str(values.get("path", "")))
    base = base if base.is_dir() else path.parent
    folders, notes = {}, []
    for split in ("train", "val", "test"):
        if value := values.get(split):
            try:
                folders[split] = _listed(path, base, value)
            except UserError as error:
                if split != "test":
                    raise
                notes.append(f"the test split is left out: {error}")  # not needed; exports often name one without it
    return folders, list(map(str, names)), tuple(notes)


def _listed(path: Path, base: Path, value: Any) -> list[Path]:
    """The images of a split: of a folder, a text file with their paths, or a list of these."""
    if isinstance(value, list):
        return [image for item in value for image in _listed(path, base, item)]
    # exports of Roboflow say ../train/images for a folder beside data.yaml
    name = user_path(str(value))
    candidates = [base / name, path.parent / name, path.parent / str(value).removeprefix("../")]
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    if found is None:
        raise UserError(f"{path}: there is no {candidates[0]}")
    if found.is_dir():
        return [image for folder in subfolders(found, 3) for image in images_in(folder)]
    lines = read_text(found, errors="replace").split("\n")
    return [found.parent / line.strip() for line in lines if line.strip()]


def _from_folders(root: Path) -> tuple[dict[str, list[Path]], list[str], tuple[str, ...]]:
    folders: dict[str, list[Path]] = {}
    for labels in _label_folders(root):
        parts = labels.relative_to(root).parts
        images = root.joinpath(*("images" if part == "labels" else part for part in parts))
        if images.is_dir() and (paths := images_in(images)):
            split = next((split for part in parts if (split := split_of(Path(part)))), "train")
            folders.setdefault(split, []).extend(paths)
    names: list[str] = []
    for file in (folder / name for folder in subfolders(root, 1) for name in NAME_FILES):
        if file.is_file():
            names = read_text(file, errors="replace").split("\n")
            names = [name.strip() for name in names if name.strip()]
            break
    return folders, names, ()


def _split(source: Path, paths: list[Path], names: list[str]) -> Split:
    sizes = read_sizes(paths)
    rows: list[Row] = []
    invalid: list[str] = []
    unlabelled: list[Path] = []
    for owner, (path, (width, height)) in enumerate(zip(paths, sizes.tolist(), strict=True)):
        file = _label_file(path)
        if not file.is_file():
            unlabelled.append(path)
            continue
        for number, line in enumerate(read_text(file, errors="replace").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                label, box = _parse(line, width, height)
            except ValueError as error:
                invalid.append(f"{file}:{number}: {error}")
                continue
            if label < 0 or (names and label >= len(names)):
                invalid.append(f"{file}:{number}: class {label}, but there are {len(names)} names")
                continue
            rows.append((owner, label, box, False))
    problems = [Problem("invalid lines of label files, left out", len(invalid), invalid[0])] if invalid else []
    if unlabelled:
        problems.append(Problem("images without a label file", len(unlabelled), str(unlabelled[0])))
    return make_split(source, paths[0].parent, paths, sizes, rows, problems=tuple(problems))


def _label_file(image: Path) -> Path:
    """Beside the image, or in `labels` where the image is in `images`; the data set may be in such a folder too."""
    beside, parts = image.with_suffix(".txt"), list(image.parts)
    if "images" not in parts:
        return beside
    last = len(parts) - 1 - parts[::-1].index("images")
    parts[last] = "labels"
    other = Path(*parts).with_suffix(".txt")
    return other if other.is_file() or not beside.is_file() else beside


def _parse(line: str, width: int, height: int) -> tuple[int, tuple[float, float, float, float]]:
    """Class and box x, y, w, h in pixels. Raises ValueError for a line of another form."""
    first, *rest = line.split()
    label, values = int(first), [float(value) for value in rest]
    if len(values) == 4:
        x, y, w, h = values
        left, top = x - w / 2, y - h / 2
    elif len(values) >= 6 and len(values) % 2 == 0:  # a polygon
        left, top = min(values[::2]), min(values[1::2])
        w, h = max(values[::2]) - left, max(values[1::2]) - top
    else:
        raise ValueError(f"{len(values)} numbers after the class: expected 4, or those of a polygon")
    if not all(-10 < value < 10 for value in values):
        raise ValueError("coordinates are not fractions of the image")
    return label, (left * width, top * height, w * width, h * height)
