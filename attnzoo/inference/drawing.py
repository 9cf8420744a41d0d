"""Draw what trained models attend to: a figure, or an interactive page."""

import logging
from collections.abc import Callable, Sequence
from numbers import Integral
from os import PathLike
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from attnzoo.attention import ATTENTIONS
from attnzoo.errors import UserError, as_yaml, check_type, plural
from attnzoo.inference.examples import to_picture
from attnzoo.inference.gallery import draw_gallery, make_rows
from attnzoo.inference.loaded import THRESHOLD, LoadedModel
from attnzoo.inference.observe import INITIAL, Observation, aims, find_layers, find_record, initial, observe
from attnzoo.inference.page.write import write_page
from attnzoo.inference.pictures import ImageLike, as_list, cannot_run, size_of
from attnzoo.inference.records import AttentionRecord, Kind, attention_names, initial_record
from attnzoo.paths import display_name, output_file
from attnzoo.rundir.folder import atomic_write

PAGE = ".html"
FORMATS = (".png", ".svg", ".pdf", PAGE)
RAMP_TOLERANCE = 3 / 255  # of the ramps that follow a point through the preprocessing

log = logging.getLogger(__name__)


def draw_attentions(
    model: LoadedModel,
    images: ImageLike | Sequence[ImageLike],
    output: str | Path,
    *,
    query: int | None = None,
    xy: tuple[float, float] | None = None,
    best: int | None = None,
    layer: str | None = None,
    head: int | None = None,
    compare: LoadedModel | str | None = None,
    bias: bool = False,
    zoom: bool = False,
    names: tuple[str, str] = ("model", "other"),
    on_error: Callable[[UserError], object] | None = None,
) -> Figure | None:
    """Write a figure (PNG, SVG, PDF) or an interactive page (HTML), by the suffix of `output`; its folder is made.

    What is drawn follows from the attention: sampling points coloured by level, with areas in proportion to weights,
    reference and box; deformed grids; maps; windows. Queries are chosen by one of

    - `query`: the number of an object query, or of a token
    - `xy`: pixels (x, y) of the original image; in decoders the object query with the best box around the point
    - `best`: that many object queries with the highest scores, of different objects first (default: four; a classifier:
      the central token)

    `layer`: a name such as "decoder.1" or "stage3.0", or "encoder" for all of its layers; by default the last of the
    decoder, or of each stage. `head`: one head, by default all. `compare`: beside each picture the initial offsets
    ("initial") or another model with the same attention and as many queries in these layers, in a page in all layers.
    `bias`: colours the keys of a deformed grid by their position bias. `zoom`: shows the surroundings of the query.
    `names`: of both models. `on_error` is called with the error of each image that cannot be read or is too small for a
    model, which is left out; by default it is raised.

    A page holds all layers, heads and queries; the choice is what it shows first. Returns the figure, or None for a
    page, or if all images are left out. Raises UserError for a layer, head, query or pixel that is not there, and for
    an unknown suffix; TypeError for arguments of other types. Then nothing is written.
    """
    check_type("model", model, (LoadedModel,), "what attnzoo.load_model returns")
    target = output_file(output, FORMATS)
    suffix = target.suffix.lower()
    _check_choice(query, xy, best, compare)
    layers = find_layers(model.model, layer)
    keep = None if suffix == PAGE else layers
    listed: list[ImageLike] = []
    observed: list[Observation] = []
    compared: list[Observation] = []
    if isinstance(compare, LoadedModel):
        for name in layers:
            try:
                find_layers(compare.model, name)
            except UserError:
                message = f"compare = {names[1]}: has no layer {name!r}; both models need the layers that are drawn"
                raise UserError(message, key="compare") from None
    for image in as_list(images):
        try:
            one = _observe(model, image, keep)
            if isinstance(compare, LoadedModel):
                compared.append(_observe(compare, image, keep))
        except UserError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        listed.append(image)
        observed.append(one)
    if not listed:
        return None
    shown = [find_record(observed[0], name) for name in layers]
    if isinstance(compare, LoadedModel):
        both = observed[0].records.keys() & compared[0].records.keys() if suffix == PAGE else ()
        for name in dict.fromkeys([*layers, *sorted(both)]):
            _check_same(name, (model, observed[0]), (compare, compared[0]), names)
    if bias and not any(record.kind == Kind.GRID and record.bias is not None for record in shown):
        raise UserError(f"bias: {', '.join(layers)}: no deformed grid with a position bias", key="bias")
    others = compared if isinstance(compare, LoadedModel) else _initial(observed, layers) if compare else None
    labels = [_label(image, index) for index, image in enumerate(listed)]
    if query is None and xy is None:
        _warn_of_low_scores(observed, labels)
    name = INITIAL if compare == INITIAL else names[1]
    rows = []
    for index, (one, image) in enumerate(zip(observed, listed, strict=True)):
        chosen = aims(one, query, None if xy is None else locate(model, image, xy), best)
        title = labels[index] if len(listed) > 1 else ""
        rows += make_rows(one, chosen, layers, head, None if others is None else others[index], name, title)
    if suffix == PAGE:
        first = rows[0].panels[0]
        start = {"layer": first.record.name, "query": first.query, "head": head, "bias": bias, "zoom": zoom}
        pictures = {names[0]: observed}
        if others is not None and compare != INITIAL:
            pictures[names[1] if names[1] != names[0] else f"{names[1]} (compared)"] = others
        write_page(target, pictures, labels, names[0], start | {"initial": compare == INITIAL})
        return None
    figure = draw_gallery(rows, head, bias, zoom)
    with atomic_write(target, "wb") as file:
        figure.savefig(file, format=suffix[1:])
    return figure


def locate(model: LoadedModel, image: ImageLike, xy: tuple[float, float]) -> tuple[float, float]:
    """Where pixel (x, y) of the original image is in what the model sees, in [0, 1].

    Ramps of brightness go through the same preprocessing, whatever it is. Raises UserError for a pixel outside of the
    image or of the part that the model sees.
    """
    (height, width), (x, y) = size_of(image), xy
    if not (0 <= x < width and 0 <= y < height):
        raise UserError(f"xy = {x:g},{y:g}: outside of the image of {width} × {height} pixels", key="xy")
    ramps = np.zeros((height, width, 3), dtype=np.uint8)
    ramps[..., 0] = ((np.arange(width) + 0.5) / width * 255).round()
    ramps[..., 1] = ((np.arange(height)[:, None] + 0.5) / height * 255).round()
    seen = to_picture(model.preprocess(Image.fromarray(ramps))).astype(float) / 255
    place = np.array([(x + 0.5) / width, (y + 0.5) / height])
    rows, columns = seen.shape[:2]
    distances = np.abs(seen[..., :2] - place)
    column, row = distances[..., 0].mean(0).argmin(), distances[..., 1].mean(1).argmin()
    steps = np.array([seen[0, -1, 0] - seen[0, 0, 0], seen[-1, 0, 1] - seen[0, 0, 1]]) / np.maximum((columns, rows), 1)
    if (distances[row, column] > RAMP_TOLERANCE + np.abs(steps)).any():
        message = f"xy = {x:g},{y:g}: outside of the central part of the image that the model sees"
        raise UserError(message, key="xy")
    return float((column + 0.5) / columns), float((row + 0.5) / rows)


def _check_choice(query: object, xy: object, best: object, compare: object) -> None:
    given = [name for name, value in (("query", query), ("xy", xy), ("best", best)) if value is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}: give one of them", key=tuple(given))
    for name, value in (("query", query), ("best", best)):
        check_type(name, value, (Integral, type(None)), "a number")
    if isinstance(best, Integral) and best < 1:
        raise UserError(f"best = {best}: expected at least 1", key="best")
    check_type("compare", compare, (LoadedModel, str, type(None)), f"{INITIAL!r} or what attnzoo.load_model returns")
    if isinstance(compare, str) and compare != INITIAL:
        raise UserError(f"compare = {as_yaml(compare)}: expected {INITIAL!r} or a model", key="compare")


def _observe(model: LoadedModel, image: ImageLike, keep: Sequence[str] | None) -> Observation:
    inputs = model.preprocess(image)[None]
    try:
        return observe(model.model, inputs, model.class_names, keep, model.forward)
    except Exception as error:
        raise cannot_run(image, size_of(image), error) from error


def _check_same(
    name: str, ours: tuple[LoadedModel, Observation], theirs: tuple[LoadedModel, Observation], names: tuple[str, str]
) -> None:
    """Raise UserError unless a layer of both has the same attention with the same sizes, and as many queries."""
    described = [f"{_attention_of(model, name)}, {_sizes(find_record(each, name))}" for model, each in (ours, theirs)]
    if described[0] != described[1]:
        told = f"{name} is {described[1]}, but {described[0]} in {names[0]}"
        raise UserError(f"compare = {names[1]}: {told}; its queries and what they attend to differ", key="compare")


def _attention_of(model: LoadedModel, layer: str) -> str:
    """The registered name of the attention of a layer."""
    qualified = next(key for key, name in attention_names(model.model).items() if name == layer)
    kind = type(model.model.get_submodule(qualified))
    return next((name for name in ATTENTIONS.names() if ATTENTIONS.get(name) is kind), kind.__name__)


def _sizes(record: AttentionRecord) -> str:
    parts = [plural(record.num_queries, "query", "queries"), plural(record.num_heads, "head")]
    if record.kind == Kind.POINTS:
        levels, points = record.weights.shape[2:]
        return ", ".join([*parts, plural(levels, "level"), plural(points, "point")])
    return ", ".join([*parts, plural(record.weights.shape[-1], "key")])


def _initial(observed: Sequence[Observation], layers: Sequence[str]) -> list[Observation]:
    """The same with initial offsets. Raises UserError for layers without."""
    for name in layers:
        if initial_record(find_record(observed[0], name)) is None:
            reason = f"{name} has no initial offsets: it is not deformable attention"
            raise UserError(f"compare = {INITIAL}: {reason}", key="compare")
    return [initial(one) for one in observed]


def _warn_of_low_scores(observed: Sequence[Observation], labels: Sequence[str]) -> None:
    """Queries with the best scores are drawn however low these are; `predict` would leave them out."""
    highest = {label: float(one.predictions.scores.max(initial=0)) for one, label in zip(observed, labels, strict=True)}
    best = max(highest, key=highest.__getitem__)
    if observed[0].is_detector and highest[best] < THRESHOLD:
        log.warning("the highest score is %.2g, in %s: below the %g of predict", highest[best], best, THRESHOLD)


def _label(image: ImageLike, index: int) -> str:
    """The name of a file, else a number."""
    return display_name(image) if isinstance(image, (str, PathLike)) else f"image {index + 1}"
