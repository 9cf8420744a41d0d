"""A sheet of training pictures with their boxes or classes, as PNG."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnzoo.data.images import ImageReader, open_image
from attnzoo.errors import UserError, plural
from attnzoo.inference import draw
from attnzoo.paths import display_name
from attnzoo.userdata.content import Array, Content, Split

COLUMNS, ROWS = 5, 3
LONGEST = 480  # pixels: longer pictures are reduced
MAX_LABELLED = 8  # boxes of one picture; with more, no labels


def draw_sheet(content: Content, split: str = "train") -> Figure:
    """Fifteen pictures of a split with their annotations.

    In detection those with the most boxes and the smallest box, and others evenly over the split; in class folders in
    turn from each class. Unreadable images are left out. Raises UserError if none can be read.
    """
    chosen = content.splits[split]
    pictures: list[tuple[int, Array, tuple[int, int]]] = []
    for index in _order(chosen):
        try:
            with open_image(chosen.paths[index]) as image:
                rgb = ImageReader().to_rgb(image, lambda: "", transpose=_is_upright(chosen, index, image.size))
        except Exception:  # Pillow's decoders raise anything
            continue
        size = rgb.size
        rgb.thumbnail((LONGEST, LONGEST))
        pictures.append((index, np.asarray(rgb), size))
        if len(pictures) == COLUMNS * ROWS:
            break
    if not pictures:
        raise UserError(f"{content.root}: no image of the split {split!r} can be read")
    rows = -(-len(pictures) // COLUMNS)
    columns = min(COLUMNS, len(pictures))
    aspect = max(picture.shape[0] / picture.shape[1] for _, picture, _ in pictures)
    title = f"{display_name(content.root)}: {split}, {plural(len(chosen.paths), 'image')}"
    figure, axes = draw.new_panels(rows, columns, min(aspect, 1.5), title)
    for axis in axes.flat:
        axis.set_visible(False)
    for (index, picture, size), axis in zip(pictures, axes.flat, strict=False):
        axis.set_visible(True)
        _draw(axis, content, chosen, index, picture, size)
    return figure


def _is_upright(split: Split, index: int, stored: tuple[int, int]) -> bool:
    """Whether boxes refer to the picture after EXIF orientation; as `ImageReader.read` decides it."""
    annotated = tuple(split.sizes[index].tolist())
    return 0 in annotated or stored != annotated


def _order(split: Split) -> list[int]:
    count = len(split.paths)
    if len(split.image_labels):
        position = np.zeros(count, dtype=np.int64)  # of each image in its class
        for label in np.unique(split.image_labels):
            members = np.flatnonzero(split.image_labels == label)
            position[members] = np.arange(len(members))
        return [int(i) for i in np.lexsort((split.image_labels, position))]
    first = []
    usable = np.flatnonzero(~split.crowds & (split.boxes[:, 2:] > 0).all(1))
    if len(usable):
        smallest = usable[split.boxes[usable, 2:].prod(1).argmin()]
        first = [int(split.boxes_per_image.argmax()), int(split.owners[smallest])]
    spread = np.linspace(0, count - 1, min(count, COLUMNS * ROWS)).astype(int).tolist()
    return list(dict.fromkeys([*first, *spread, *range(count)]))


def _draw(axis: Axes, content: Content, split: Split, index: int, picture: Array, size: tuple[int, int]) -> None:
    name = display_name(split.paths[index])
    if not content.is_detection:
        draw.draw_image(axis, picture, content.classes[int(split.image_labels[index])])
        return
    draw.draw_image(axis, picture, name if len(name) <= 24 else f"…{name[-23:]}")
    mine = np.flatnonzero((split.owners == index) & ~split.crowds)
    corners = np.concatenate([split.boxes[mine, :2], split.boxes[mine, :2] + split.boxes[mine, 2:]], axis=1)
    corners = corners / np.array([*size, *size])
    for label in np.unique(split.labels[mine]).tolist():
        of_class = np.flatnonzero(split.labels[mine] == label)
        names = [content.classes[label]] * len(of_class) if len(mine) <= MAX_LABELLED else []
        draw.draw_boxes(axis, corners[of_class], names, draw.COLORS[label % len(draw.COLORS)])
