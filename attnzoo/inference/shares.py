"""Where a decoder's attention goes: the share inside the predicted box, and that of each level by object size."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from attnzoo.geometry import Role
from attnzoo.inference.examples import Example, Predictions
from attnzoo.inference.records import Array, AttentionRecord, Kind, token_centers

SIZES = ("small", "medium", "large")


class Match(NamedTuple):
    """The query whose predicted box fits an object best, that box (x1, y1, x2, y2) in [0, 1], and the object's size."""

    query: int
    box: Array
    size: str


class AttentionShares:
    """Means over objects and heads, of the query whose predicted box has the largest IoU with the object.

    `area_thresholds`: square pixels of the original image below which an object is small, and from which it is large.
    """

    def __init__(self, area_thresholds: tuple[float, float]):
        self._thresholds = area_thresholds
        self._found: dict[str, list[float]] = defaultdict(list)

    def add(self, example: Example, predictions: Predictions, records: Mapping[str, AttentionRecord]) -> None:
        """Add the objects of one image; `records` of the decoder's attentions by name."""
        matches = list(best_queries(example, predictions, self._thresholds))
        for name, record in records.items():
            if record.role != Role.DECODER or record.kind is None:
                continue
            weights, levels = record.weights_per_query, key_levels(record)
            for match in matches:
                self._found[f"inside_box/{name}"].append(inside_share(record, match.query, match.box))
                if levels is not None and levels[-1] > 0:
                    share = np.bincount(levels, weights[match.query].mean(0))
                    for level, value in enumerate(share):
                        self._found[f"level_share/{name}/{match.size}/level{level}"].append(float(value))

    def means(self) -> dict[str, float]:
        """By `inside_box/NAME` and `level_share/NAME/SIZE/levelL`, without what no object gave."""
        return {key: float(np.mean(values)) for key, values in self._found.items()}


def best_queries(example: Example, predictions: Predictions, thresholds: tuple[float, float]) -> Iterator[Match]:
    """The match of each object of an image; none without predicted boxes."""
    if len(predictions.boxes) == 0:
        return
    height, width = example.original_size or example.picture.shape[:2]
    for box in example.boxes:
        best = int(np.argmax(_iou(predictions.boxes, box)))
        area = (box[2] - box[0]) * width * (box[3] - box[1]) * height
        size = SIZES[int(np.searchsorted(thresholds, area, side="right"))]
        yield Match(int(predictions.queries[best]), predictions.boxes[best], size)


def _iou(boxes: Array, box: Array) -> Array:
    """IoU of boxes (n, 4) with one box; 0 where both are empty."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    common = (high - low).clip(min=0).prod(-1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(-1) + (box[2:] - box[:2]).prod() - common
    return np.asarray(common / union.clip(min=1e-12))


def inside_share(record: AttentionRecord, query: int, box: Array) -> float:
    """The share of a query's attention, mean over heads, at keys that lie in the box (x1, y1, x2, y2)."""
    locations = key_locations(record, query)
    inside = ((locations >= box[:2]) & (locations <= box[2:])).all(-1)
    return float((record.weights_per_query[query] * inside).sum(-1).mean())


def key_locations(record: AttentionRecord, query: int) -> Array:
    """Locations (M, K, 2), or (1, K, 2) for all heads, of the keys of a query, in [0, 1] of the image."""
    if record.kind == Kind.MAP:
        return token_centers(record.map_sizes)[None]
    assert record.locations is not None
    heads = record.weights_per_query.shape[1]
    match record.kind:
        case Kind.POINTS:
            return record.locations[query].reshape(heads, -1, 2)
        case Kind.GRID:
            groups = record.locations.swapaxes(0, 1)  # of neighbouring heads
            return np.repeat(groups, heads // len(groups), 0)
    return record.locations[query][None]


def key_levels(record: AttentionRecord) -> Array | None:
    """The level of each of the K keys, ascending; None of windows, and of a plugin's grid."""
    if record.kind == Kind.POINTS:
        _, _, levels, points = record.weights.shape
        return np.repeat(np.arange(levels), points)
    counts = None
    if record.kind == Kind.MAP:
        counts = [height * width for height, width in record.map_sizes]
    elif record.kind == Kind.GRID and record.grids is not None:
        counts = [grid.shape[0] * grid.shape[1] for grid in record.grids]
    return None if counts is None else np.repeat(np.arange(len(counts)), counts)
