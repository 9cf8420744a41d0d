"""What a model predicts for one image and what its attentions look at; layers and queries of it by name and place."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnzoo.errors import UserError, unknown
from attnzoo.geometry import Role
from attnzoo.inference.attention import level_of_token, token_center
from attnzoo.inference.examples import NO_BOXES, Predictions, class_name, read_predictions, to_picture
from attnzoo.inference.records import Array, AttentionRecord, Kind, attention_names, initial_record, record_attentions
from attnzoo.models.detr.boxes import cxcywh_to_xyxy
from attnzoo.models.detr.output import DetectorOutput

INITIAL = "initial"  # in place of weights to compare with
BEST = 4  # object queries, by default
DUPLICATE = 0.5  # intersection over union of boxes of the same object


@dataclass(frozen=True, eq=False)
class Observation:
    """A model on one image.

    - `picture`: (h, w, 3), 8-bit, what the model sees
    - `predictions`: of the last layer
    - `boxes`: (layers, Q, 4) as (x1, y1, x2, y2) in [0, 1], of each decoder layer; without rows in classification
    - `records`: of its attentions, by name
    - `same_queries`: whether an object query has the same meaning in all images and in weights of the same training
    """

    picture: Array
    predictions: Predictions
    boxes: Array
    records: Mapping[str, AttentionRecord]
    class_names: Sequence[str] = ()
    same_queries: bool = True

    @property
    def is_detector(self) -> bool:
        return len(self.boxes) > 0

    def rank(self, query: int) -> int:
        """The row of `predictions` of an object query."""
        return int(np.flatnonzero(self.predictions.queries == query)[0])

    def label(self, query: int) -> str:
        """The class and score of an object query."""
        rank = self.rank(query)
        return f"{class_name(self.class_names, self.predictions.labels[rank])} {self.predictions.scores[rank]:.2f}"

    def box(self, query: int) -> Array:
        """The box (x1, y1, x2, y2) of an object query after the last layer, in [0, 1]."""
        return self.boxes[-1, query]

    def query_at(self, point: tuple[float, float]) -> int:
        """The object query of the best box around `point` (x, y) in [0, 1], else that of the nearest centre."""
        boxes = self.predictions.boxes
        inside = (boxes[:, :2] <= point).all(1) & (boxes[:, 2:] >= point).all(1)
        if inside.any():
            return int(self.predictions.queries[inside][0])
        distances = np.linalg.norm((boxes[:, :2] + boxes[:, 2:]) / 2 - point, axis=1)
        return int(self.predictions.queries[distances.argmin()])


@torch.no_grad()
def observe(
    model: nn.Module,
    inputs: Tensor,
    class_names: Sequence[str] = (),
    keep: Collection[str] | None = None,
    forward: Callable[[Tensor], Any] | None = None,
) -> Observation:
    """Run a detector or classifier on one image (1, 3, h, w), normalised and without padding.

    `keep`: names of the attentions to record (`attention_names`), by default all. `forward` is the model as it is
    called, such as under autocast. It is called in eval mode, and left as it was. An attention whose weights cannot be
    drawn has no record.
    """
    records: dict[str, AttentionRecord] = {}

    def receive(record: AttentionRecord) -> None:
        if (keep is None or record.name in keep) and record.kind is not None:
            records[record.name] = record

    training = model.training
    model.eval()
    try:
        with record_attentions(model, receive):
            output = (forward or model)(inputs)
    finally:
        model.train(training)
    boxes = NO_BOXES[None][:0]
    if isinstance(output, DetectorOutput):
        boxes = cxcywh_to_xyxy(output.boxes[:, 0].float()).cpu().numpy()
    predictions = read_predictions(output, int(model.num_classes))  # type: ignore[arg-type]
    learned = not getattr(getattr(getattr(model, "config", None), "head", None), "two_stage", False)
    return Observation(to_picture(inputs[0]), predictions, boxes, records, class_names, learned)


def initial(observed: Observation) -> Observation:
    """The same queries with the sampling points of a new layer: initial offsets, equal weights."""
    records = {name: changed for name, record in observed.records.items() if (changed := initial_record(record))}
    return replace(observed, records=records)


def find_layers(model: nn.Module, layer: str | None) -> list[str]:
    """Names of the attentions that `layer` means: one name, or "decoder" or "stage3" for all of its layers.

    None means the last layer of the decoder, of an encoder alone, or of each stage. Raises UserError for a name that
    the model has not.
    """
    names = list(attention_names(model).values())
    if layer is None:
        last = {name.rpartition(".")[0]: name for name in names}
        for slot in (Role.DECODER, Role.ENCODER):
            if slot in last:
                return [last[slot]]
        return list(last.values())
    found = [name for name in names if layer in (name, name.rpartition(".")[0])]
    if not found:
        slots = dict.fromkeys(name.rpartition(".")[0] for name in names)
        raise unknown("layer", layer, [*names, *slots], "layer")
    return found


def find_record(observed: Observation, name: str) -> AttentionRecord:
    """The record of a layer. Raises UserError where an attention records nothing, or more than memory allows."""
    if name not in observed.records:
        raise UserError(
            f"{name}: nothing to draw: this attention records no weights and locations of a known shape, "
            "or too many for memory (a smaller image has fewer)"
        )
    return observed.records[name]


def check_head(record: AttentionRecord, head: int | None) -> None:
    """Raises UserError for a head that the layer has not."""
    if head is not None and not 0 <= head < record.num_heads:
        raise UserError(f"head = {head}: {record.name} has {_range('head', record.num_heads)}", key="head")


@dataclass(frozen=True)
class Aim:
    """What to look at: a query by its number, or a point (x, y) in [0, 1] of the picture; both where they are known."""

    query: int | None = None
    point: tuple[float, float] | None = None

    def query_of(self, observed: Observation, record: AttentionRecord) -> int:
        """The query of a layer. Raises UserError for a number that it has not."""
        if self.query is not None and (self.point is None or not record.on_grid):
            if not 0 <= self.query < record.num_queries:
                noun = "query" if record.on_grid else "object query"
                raise UserError(
                    f"query = {self.query}: {record.name} has {_range(noun, record.num_queries)}", key="query"
                )
            return self.query
        assert self.point is not None
        return record.nearest_query(self.point) if record.on_grid else observed.query_at(self.point)


def aims(observed: Observation, query: int | None, xy: tuple[float, float] | None, best: int | None) -> list[Aim]:
    """What to look at: one query, one point (x, y) in [0, 1], or the `best` object queries, of different objects first.

    The default is the best four, in classification the centre of the picture. Raises UserError for `best` of a
    classifier.
    """
    if query is not None:
        return [Aim(query)]
    if xy is not None:
        return [Aim(point=xy)]
    if not observed.is_detector:
        if best is not None:
            raise UserError("best: a classifier has no object queries; choose a token by query or xy", key="best")
        return [Aim(point=(0.5, 0.5))]
    found = []
    for number in best_queries(observed)[: BEST if best is None else best]:
        x1, y1, x2, y2 = observed.box(number).tolist()
        found.append(Aim(number, ((x1 + x2) / 2, (y1 + y2) / 2)))
    return found


def best_queries(observed: Observation) -> list[int]:
    """Object queries by descending score; those whose box overlaps one before (IoU above a half) come last."""
    distinct: list[int] = []
    others: list[int] = []
    for number in observed.predictions.queries.tolist():
        repeats = distinct and _overlaps(observed.box(number), observed.boxes[-1, distinct]).max() > DUPLICATE
        (others if repeats else distinct).append(number)
    return [*distinct, *others]


def counterpart(observed: Observation, other: Observation, record: AttentionRecord, query: int) -> Aim:
    """The query of another model to compare with `query`: a token at the same place, or the same object query.

    Object queries of two-stage detectors differ by image and weights: there it is that with the most similar box.
    """
    if record.on_grid:
        x, y = token_center(record, query)
        if level_of_token(query, record) > 0:  # maps of both are the same
            return Aim(query)
        return Aim(point=(float(x), float(y)))
    if observed.same_queries and other.same_queries:
        return Aim(query)
    return Aim(int(_overlaps(observed.box(query), other.boxes[-1]).argmax()))


def _overlaps(box: Array, boxes: Array) -> Array:
    """Intersection over union, minus the distance of the centres so that boxes without overlap are ordered too."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    common = (high - low).clip(min=0).prod(1)
    areas = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1)
    centers = (boxes[:, :2] + boxes[:, 2:] - box[:2] - box[2:]) / 2
    return common / np.maximum(areas - common, 1e-12) - 1e-3 * np.linalg.norm(centers, axis=1)


def describe(observed: Observation, record: AttentionRecord, query: int) -> str:
    """A query in words: class and score of an object query, place of a token in pixels of the picture."""
    if not record.on_grid:
        return f"{observed.label(query)} · query {query}" if observed.is_detector else f"query {query}"
    height, width = observed.picture.shape[:2]
    x, y = token_center(record, query) * (width, height)
    several = record.query_sizes is not None and len(record.query_sizes) > 1
    level = f" of level {level_of_token(query, record)}" if several else ""
    return f"token{level} at ({x:.0f}, {y:.0f})"


def what_is_drawn(record: AttentionRecord, head: int | None) -> str:
    """Which heads are drawn, and how."""
    if head is not None:
        return f"head {head}"
    return "all heads" if record.kind in (Kind.POINTS, Kind.GRID) else "mean over heads"


def _range(noun: str, count: int) -> str:
    many = {"query": "queries", "object query": "object queries"}.get(noun, f"{noun}s")
    return f"{many} 0 … {count - 1}" if count > 1 else f"one {noun}, 0"
