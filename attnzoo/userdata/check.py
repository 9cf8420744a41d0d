"""What is in a data set before training: counts, sizes of boxes, and what is odd."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attnzoo.data.augment_detection import resized_shape
from attnzoo.userdata.content import Array, Content, Problem, Split
from attnzoo.userdata.decode import FileState, read_files

STRIDES = (4, 8, 16, 32, 64)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
FEW = 10  # training examples of a class
MAX_ASPECT = 20.0
SCALE, MAX_SIZE = 800, 1333  # of the augmentation `detr`


@dataclass(frozen=True)
class BoxSizes:
    """Box sizes after a resize of the images. `quantiles`: of the square root of the area, in pixels.

    `below`: stride -> fraction of boxes of which the shorter side is under one cell of a map of that stride.
    """

    images: str  # how the images are resized
    quantiles: dict[str, float]
    below: dict[str, float]


@dataclass(frozen=True)
class SplitReport:
    """Counts of one split; boxes without crowds. `image_size` is the most common width and height in pixels."""

    source: str
    images: int
    boxes: int
    crowds: int
    images_without_boxes: int
    most_boxes: int  # in one image
    classes: dict[str, int]  # boxes, or images in class folders
    image_size: tuple[int, int]
    image_sizes: int  # number of different sizes
    box_sizes: list[BoxSizes]
    problems: list[Problem]


@dataclass(frozen=True)
class DataReport:
    """What `attnzoo data` prints. `problems` concern both splits."""

    folder: str
    layout: str
    classes: list[str]
    splits: dict[str, SplitReport]
    problems: list[Problem]
    notes: list[str]

    @property
    def has_errors(self) -> bool:
        """Whether training would refuse the data set."""
        found = [*self.problems, *(problem for split in self.splits.values() for problem in split.problems)]
        return any(problem.error for problem in found)


def check_content(content: Content, done: Callable[[], object] = lambda: None) -> DataReport:
    """Read every image of a data set and report what is in it; `done` is called after each image."""
    states = {name: read_files(split.paths, done) for name, split in content.splits.items()}
    splits = {name: _report(content, split, states[name]) for name, split in content.splits.items()}
    notes = list(content.notes)
    if "val" not in splits:
        notes.append("there is no validation split; `attnzoo new` makes one")
    if content.layout in ("yolo", "voc"):
        notes.append("`attnzoo data --convert OUT`, and `attnzoo new`, write it in COCO format")
    classes = content.classes
    problems = [*_shared(content, states), *_missing_classes(content)]
    return DataReport(str(content.root), content.layout, classes, splits, problems, notes)


def _report(content: Content, split: Split, states: Sequence[FileState]) -> SplitReport:
    actual = np.array([state.size for state in states], dtype=np.int64).reshape(-1, 2)
    sizes = np.where((split.sizes > 0).all(axis=1, keepdims=True), split.sizes, actual)
    common = Counter(map(tuple, sizes[(sizes > 0).all(1)].tolist())).most_common()
    boxed = content.is_detection
    counts = split.class_counts(len(content.classes)).tolist()
    names = content.classes
    if len(set(names)) < len(names):
        names = [f"{i}: {name}" for i, name in enumerate(names)]
    return SplitReport(
        str(split.source),
        len(split.paths),
        int((~split.crowds).sum()),
        int(split.crowds.sum()),
        int((split.boxes_per_image == 0).sum()) if boxed else 0,
        int(split.boxes_per_image.max(initial=0)),
        dict(zip(names, counts, strict=True)),
        common[0][0] if common else (0, 0),
        len(common),
        _box_sizes(split, sizes) if boxed else [],
        [*split.problems, *_image_problems(split, states), *(_box_problems(split, sizes) if boxed else [])],
    )


def _box_sizes(split: Split, sizes: Array) -> list[BoxSizes]:
    kept = ~split.crowds & (split.boxes[:, 2:] > 0).all(1) & (sizes[split.owners] > 0).all(1)
    if not kept.any():
        return []
    sides, owners = split.boxes[kept, 2:], split.owners[kept]
    scales = np.array([_scale(width, height) if width > 0 and height > 0 else 1.0 for width, height in sizes.tolist()])
    return [
        _sizes_of("as stored", sides),
        _sizes_of(f"shorter side {SCALE}, longer at most {MAX_SIZE}", sides * scales[owners, None]),
    ]


def _scale(width: int, height: int) -> float:
    return resized_shape(height, width, SCALE, MAX_SIZE)[0] / height


def _sizes_of(images: str, sides: Array) -> BoxSizes:
    quantiles = np.quantile(np.sqrt(sides.prod(1)), QUANTILES)
    return BoxSizes(
        images,
        {f"{quantile:.0%}": round(float(value), 1) for quantile, value in zip(QUANTILES, quantiles, strict=True)},
        {str(stride): round(float((sides.min(1) < stride).mean()), 4) for stride in STRIDES},
    )


def _image_problems(split: Split, states: Sequence[FileState]) -> Iterator[Problem]:
    missing = [i for i, state in enumerate(states) if state.error == "missing"]
    broken = [i for i, state in enumerate(states) if state.error and state.error != "missing"]
    if missing:
        yield Problem("missing images", len(missing), str(split.paths[missing[0]]), error=True)
    if broken:
        first = f"{split.paths[broken[0]]} ({states[broken[0]].error})"
        yield Problem("images that cannot be read", len(broken), first, error=True)
    other = [
        i
        for i, state in enumerate(states)
        if not state.error and split.sizes[i].all() and tuple(split.sizes[i]) not in (state.size, state.raw_size)
    ]
    if other:
        (width, height), found = split.sizes[other[0]].tolist(), states[other[0]].size
        first = f"{split.paths[other[0]]}, {found[0]}x{found[1]}, annotated as {width}x{height}"
        yield Problem("images of another size than annotated", len(other), first, error=True)
    by_digest: dict[str, list[int]] = {}
    for i, state in enumerate(states):
        if state.digest:
            by_digest.setdefault(state.digest, []).append(i)
    groups = [group for group in by_digest.values() if len(group) > 1]
    if groups:
        first = f"{split.paths[groups[0][0]]} and {split.paths[groups[0][1]]}"
        yield Problem("images that are copies of another one", sum(len(group) - 1 for group in groups), first)
    labels = split.image_labels
    mixed = [group for group in groups if len(labels) and len(set(labels[group].tolist())) > 1]
    if mixed:
        first = f"{split.paths[mixed[0][0]]} and {split.paths[mixed[0][1]]}"
        yield Problem("images in two classes", len(mixed), first)


def _box_problems(split: Split, sizes: Array) -> Iterator[Problem]:
    boxes, known = split.boxes, (sizes[split.owners] > 0).all(axis=1, keepdims=True)
    limits = np.where(known, sizes[split.owners], np.inf)
    start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    inside = np.minimum(end, limits) - np.maximum(start, 0)
    empty = (inside <= 0).any(1)
    area = boxes[:, 2:].prod(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        aspect = boxes[:, 2:].max(1, initial=0) / boxes[:, 2:].min(1, initial=np.inf)
    rows = np.column_stack([split.owners, split.labels, boxes])
    _, first_of, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    repeated = first_of[inverse.reshape(-1)] != np.arange(len(rows))
    for wrong, text in (
        (empty, "boxes empty or outside their image, not trained on"),
        (
            ~empty & ((start < -1) | (end > limits + 1)).any(1),
            "boxes over the border of their image, which are clipped",
        ),
        (~empty & (boxes[:, 2:] < 1).any(1), "boxes under a pixel wide or high (fractions instead of pixels?)"),
        (repeated, "boxes annotated twice"),
        (~empty & np.ravel(known) & (area >= 0.99 * limits.prod(1)), "boxes that cover their whole image"),
        (~empty & (aspect > MAX_ASPECT), f"boxes over {MAX_ASPECT:.0f} times as long as wide"),
    ):
        wrong = wrong & ~split.crowds
        if wrong.any():
            i = int(wrong.argmax())
            box = ", ".join(f"{value:g}" for value in boxes[i])
            yield Problem(text, int(wrong.sum()), f"[{box}] of {split.paths[split.owners[i]]}")


def _shared(content: Content, states: Mapping[str, Sequence[FileState]]) -> Iterator[Problem]:
    if "val" not in states:
        return
    train = {
        state.digest: path
        for state, path in zip(states["train"], content.splits["train"].paths, strict=True)
        if state.digest
    }
    both = [
        (train[state.digest], path)
        for state, path in zip(states["val"], content.splits["val"].paths, strict=True)
        if state.digest in train
    ]
    if both:
        yield Problem("validation images that are also training images", len(both), f"{both[0][1]} and {both[0][0]}")


def _missing_classes(content: Content) -> Iterator[Problem]:
    counts = {name: split.class_counts(len(content.classes)) for name, split in content.splits.items()}
    train = counts["train"]
    val = counts.get("val", np.ones_like(train))
    kind = "boxes" if content.is_detection else "images"
    untrained, unseen, few = train == 0, (val == 0) & (train > 0), (train > 0) & (train < FEW)
    for wrong, text, error in (
        (untrained, f"classes without training {kind}", not content.is_detection),
        (unseen, f"classes without validation {kind}", False),
        (few, f"classes with fewer than {FEW} training {kind}", False),
    ):
        if wrong.any():
            first = content.classes[int(wrong.argmax())]
            yield Problem(text, int(wrong.sum()), first, error)
