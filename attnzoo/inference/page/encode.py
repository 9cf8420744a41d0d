"""Records of attentions as compact JSON for the script of the page.

Arrays are 16-bit integers, compressed and in base64: weights in 1 / 65535 of their maximum, locations from -1 to 2 of
the picture, biases from minus to plus their maximum.
"""

import base64
import io
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from attnzoo.inference.attention import TITLES, at_centers
from attnzoo.inference.examples import class_name
from attnzoo.inference.observe import Observation
from attnzoo.inference.records import Array, AttentionRecord, Kind, initial_record

LOW, SPAN = -1.0, 3.0  # of locations
MAX_SIDE = 1400  # pixels of a picture
MIN_PNG_SIDE = 256  # smaller pictures are kept as they are


def encode_observation(observed: Observation, budget: int) -> dict[str, Any]:
    """One picture: `budget` is the number of bytes, before compression, that each of its attentions may take."""
    height, width = observed.picture.shape[:2]
    predictions = observed.predictions
    order = np.argsort(predictions.queries) if observed.is_detector else np.arange(0)
    return {
        "width": width,
        "height": height,
        "source": encode_picture(observed.picture),
        "boxes": _rounded(observed.boxes),
        "scores": _rounded(predictions.scores[order]),
        "labels": [class_name(observed.class_names, label) for label in predictions.labels[order]],
        "sameQueries": observed.same_queries,
        "guesses": _guesses(observed),
        "layers": [encode_record(record, observed, budget) for record in observed.records.values()],
    }


def encode_picture(picture: Array) -> str:
    """A picture (h, w, 3) as the URL of a PNG, if it is small, or of a JPEG of at most MAX_SIDE pixels."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    small = max(image.size) <= MIN_PNG_SIDE
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    image.save(buffer, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 88}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def encode_record(record: AttentionRecord, observed: Observation, budget: int) -> dict[str, Any]:
    """One attention; queries are left out where all of them take more than `budget` bytes.

    Weights are (Q, M, K) with K keys, for sampling points level by level.
    """
    assert record.kind is not None
    kind = record.kind
    weights = record.weights.swapaxes(0, 1) if kind in (Kind.GRID, Kind.MAP) else record.weights
    queries, heads = weights.shape[:2]
    weights = weights.reshape(queries, heads, -1)
    bias = None if record.bias is None or kind != Kind.GRID else record.bias.swapaxes(0, 1)
    per_query = 2 * heads * weights.shape[2] * (1 if bias is None else 2)
    if kind in (Kind.POINTS, Kind.WINDOW):
        assert record.locations is not None
        per_query += 2 * record.locations[0].size
    kept, tokens = _kept_queries(record, observed, max(budget // per_query, 1))
    locations = record.locations if kind != Kind.MAP else None
    if locations is not None and kind != Kind.GRID:
        locations = locations[kept].reshape(len(kept), -1, 2)
    groups = record.locations.shape[1] if kind == Kind.GRID and record.locations is not None else 1
    return {
        "name": record.name,
        "role": str(record.role),
        "kind": str(kind),
        "title": TITLES[kind],
        "heads": heads,
        "groups": groups,
        "keys": weights.shape[2],
        "queries": queries,
        "onGrid": record.on_grid,
        "queryLevels": None if record.query_sizes is None else [list(size) for size in record.query_sizes],
        "levels": [list(size) for size in record.map_sizes],
        "points": record.weights.shape[3] if kind == Kind.POINTS else 0,
        "kept": None if len(kept) == queries else kept.tolist(),
        "tokens": tokens,
        "exact": kind != Kind.WINDOW or at_centers(record, 0, 0),
        "weights": _encode(weights[kept] / max(float(weights.max()), 1e-12)),
        "maxWeight": float(weights.max()),
        "locations": None if locations is None else _encode((locations - LOW) / SPAN),
        "bias": None if bias is None else _encode(bias[kept] / max(2 * float(np.abs(bias).max()), 1e-12) + 0.5),
        "maxBias": 0.0 if bias is None else float(np.abs(bias).max()),
        "references": None if record.references is None or record.on_grid else _rounded(record.references),
        "grids": None if record.grids is None else [_rounded(grid) for grid in record.grids],
        "initial": None if initial_record(record) is None else _rounded(record.initial_offsets),
    }


def _kept_queries(
    record: AttentionRecord, observed: Observation, count: int
) -> tuple[Array, list[dict[str, int]] | None]:
    """Indices of at most about `count` queries: of tokens, every n-th in both directions; else those of best score.

    Of tokens also, for each level: its first row and column that are kept, the step, and how many rows and columns.
    """
    queries = record.num_queries
    if record.query_sizes is None:
        if count >= queries:
            return np.arange(queries), None
        ranked = observed.predictions.queries if observed.is_detector else np.arange(queries)
        return np.sort(ranked[:count]), None
    sizes, step = record.query_sizes, 1
    while sum(-(-h // step) * -(-w // step) for h, w in sizes) > count and step < max(map(max, sizes)):
        step += 1
    kept: list[Array] = []
    tokens, start = [], 0
    for height, width in sizes:
        first_row, first_column = (min((step - 1) // 2, (side - 1) // 2) for side in (height, width))
        rows, columns = np.arange(first_row, height, step), np.arange(first_column, width, step)
        kept.append((start + rows[:, None] * width + columns).reshape(-1))
        tokens.append(
            {"row": first_row, "column": first_column, "step": step, "rows": len(rows), "columns": len(columns)}
        )
        start += height * width
    return np.concatenate(kept), tokens


def _encode(values: Array) -> str:
    """Values in [0, 1], clipped, as 16-bit integers."""
    integers = (values.clip(0, 1) * 65535).round().astype("<u2")
    return base64.b64encode(zlib.compress(integers.tobytes(), 9)).decode()


def _rounded(values: Array | None) -> Any:
    return None if values is None else np.round(values.astype(float), 5).tolist()


def _guesses(observed: Observation) -> list[list[Any]]:
    """In classification, the names and scores of the best three classes."""
    if observed.is_detector:
        return []
    found: Sequence[Any] = list(zip(observed.predictions.labels, observed.predictions.scores, strict=True))[:3]
    return [[class_name(observed.class_names, int(label)), round(float(score), 4)] for label, score in found]
