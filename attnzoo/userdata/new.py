"""`attnzoo new`: a commented experiment file for a data set, after looking at it."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attnzoo.config.load import MAX_NAME
from attnzoo.errors import UserError, as_yaml, plural
from attnzoo.schema import yaml12
from attnzoo.userdata.content import Content, read_sizes
from attnzoo.userdata.convert import VAL_FRACTION, convert
from attnzoo.userdata.read import read_folder
from attnzoo.userdata.recipe import Facts, classification_recipe, detection_recipe
from attnzoo.userdata.start import Start, read_start

SAMPLE = 500  # images whose sizes are read in class folders
NO_TEXT = "not text in UTF-8, which an experiment file cannot name; give a symbolic link with another name"
NAME = re.compile(r"\w[\w.+-]*")


@dataclass(frozen=True)
class NewExperiment:
    """The written file, and the folder with the data set if it had to be converted or split."""

    path: Path
    data: Path | None
    root: Path  # of the data set that the file names

    @property
    def message(self) -> str:
        """What was written and what to run next."""
        lines = [f"written: {self.path}"]
        if self.data is not None:
            lines.append(f"written: {self.data}, the data set with a validation split; images are linked, not copied")
        name = self.path.stem
        return "\n".join(
            [
                *lines,
                "next:",
                f"  python -m attnzoo data {shlex.quote(str(self.root))} --sheet {name}.png",
                f"  python -m attnzoo run {shlex.quote(str(self.path))} --dry-run",
                f"  python -m attnzoo run {shlex.quote(str(self.path))}",
            ]
        )


def new_experiment(
    name: str,
    content: Content,
    weights: str | None = None,
    val_fraction: float = VAL_FRACTION,
    folder: Path = Path(),
) -> NewExperiment:
    """Write NAME.yaml into `folder` for a data set, which `read_folder` has read.

    A data set without validation split, or in YOLO or VOC format, is written to NAME_data first, see `convert`; the
    original is left as it is. Raises UserError if one of them exists, or the weights do not fit the task.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"NAME = {as_yaml(name)}: expected letters, digits and any of . _ + -, without a folder")
    path, data = folder / f"{name}.yaml", folder / f"{name}_data"
    if (length := len(name.encode())) > MAX_NAME:
        raise UserError(f"NAME: {length} bytes long: expected at most {MAX_NAME}")
    if path.exists():
        raise UserError(f"{path}: exists already; name another experiment, or remove it")
    for option, given in (("--data", str(content.root)), ("--weights", weights or "")):
        if not yaml12.is_text(given):
            raise UserError(f"{option} {as_yaml(given)}: {NO_TEXT}")
    task = "detection" if content.is_detection else "classification"
    start = Start() if weights is None else read_start(weights, task)
    is_ready = "val" in content.splits and content.layout in ("coco", "class folders")
    if not is_ready:
        convert(content, data, val_fraction)
        content = read_folder(data)
    text = "\n".join(_lines(name, content, start)) + "\n"
    path.write_text(text, encoding="utf-8")
    return NewExperiment(path, None if is_ready else data, content.root)


def _lines(name: str, content: Content, start: Start) -> Iterator[str]:
    facts = _facts(content)
    recipe = (detection_recipe if content.is_detection else classification_recipe)(facts, start)
    boxes = f", {facts.boxes:,} boxes, at most {facts.most_boxes} in one image" if content.is_detection else ""
    root = str(content.root)
    root = root if root.isprintable() else json.dumps(root)
    classes = plural(facts.classes, "class", "classes")
    yield f"# {root}: {classes}, {facts.images:,} training images{boxes}."
    yield "# All keys: docs/config-reference.md. Change any on the command line: `attnzoo run FILE train.epochs=5`."
    yield from _block({"name": name, "task": recipe.task})
    yield "data:"
    dataset = _coco_dataset(content) if content.is_detection else _folder_dataset(content)
    yield from _block({"dataset": dataset}, "  ")
    for block, keys in recipe.blocks.items():
        if block != "data":
            yield f"{block}:"
        for key, (value, comment) in keys.items():
            yield from _entry(key, value, comment)
    yield "device: auto  # a GPU if there is one"


def _entry(key: str, value: Any, comment: str) -> Iterator[str]:
    """A key with its comment: behind it if there is room, else above."""
    line = f"  {_key_value(key, value)}"
    if comment and len(line) + len(comment) + 4 > 120:
        yield f"  # {comment}"
        comment = ""
    yield f"{line}  # {comment}" if comment else line


def _block(values: dict[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _block(value, f"{indent}  ")
        else:
            yield f"{indent}{_key_value(key, value)}"


def _key_value(key: str, value: Any) -> str:
    """On one line, a mapping in braces."""
    value = yaml12.escape(value)
    return yaml12.dump_text(key, value) if isinstance(value, str) else f"{key}: {as_yaml(value)}"


def _coco_dataset(content: Content) -> dict[str, Any]:
    dataset: dict[str, Any] = {"name": "coco", "root": str(content.root)}
    for split in ("train", "val"):
        dataset[f"{split}_annotations"] = _below(content.root, content.splits[split].source)
        dataset[f"{split}_images"] = _below(content.root, content.splits[split].image_dir)
    return dataset | {"labels": "contiguous"}


def _folder_dataset(content: Content) -> dict[str, Any]:
    return {"name": "folder", "root": str(content.root)} | {
        split: _below(content.root, content.splits[split].source) for split in ("train", "val")
    }


def _below(root: Path, path: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _facts(content: Content) -> Facts:
    train = content.splits["train"]
    sizes = train.sizes
    if not content.is_detection:
        step = max(len(train.paths) // SAMPLE, 1)
        sizes = read_sizes(train.paths[::step])
    known = sizes[(sizes > 0).all(1)]
    if not len(known):
        raise UserError(f"{content.root}: no image of the training split can be read")
    kept = ~train.crowds & (train.boxes[:, 2:] > 0).all(1)
    shorter = np.maximum(sizes[train.owners[kept]].min(1), 1) if content.is_detection else np.ones(0)
    return Facts(
        classes=len(content.classes),
        images=len(train.paths),
        boxes=int(kept.sum()),
        most_boxes=max(int(split.boxes_per_image.max(initial=0)) for split in content.splits.values()),
        shorter_side=int(np.median(known.min(1))),
        smallest_side=int(known.min()),
        relative_sides=train.boxes[kept, 2:].min(1) / shorter,
    )
