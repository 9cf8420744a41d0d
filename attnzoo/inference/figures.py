"""Figures of several pictures: predictions, attention of a layer, offsets."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from attnzoo.inference import draw
from attnzoo.inference.attention import TITLES, draw_attention, legend
from attnzoo.inference.examples import Example, Predictions, class_name
from attnzoo.inference.records import Array, AttentionRecord

MIN_SCORE = 0.3  # of predictions that are drawn
MAX_BOXES = 20
MAX_DOTS = 150  # of one ring of a head
TRUTH, PREDICTION = draw.COLORS[1], draw.COLORS[4]

Result = tuple[Example, Predictions]


def draw_predictions(results: Sequence[Result], names: Sequence[str]) -> Figure:
    """Ground truth above predictions with a score of at least MIN_SCORE; in classification the three best classes."""
    aspect = _aspect(results)
    if not len(results[0][1].boxes):
        figure, axes = draw.new_panels(1, len(results), aspect, "Predictions")
        for panel, (example, predictions) in zip(axes[0], results, strict=True):
            best = zip(predictions.labels[:2], predictions.scores[:2], strict=True)
            guesses = ", ".join(f"{class_name(names, label)} {score:.2f}" for label, score in best)
            right = predictions.labels[0] == example.labels[0]
            title = f"{class_name(names, example.labels[0])}: {guesses}"
            draw.draw_image(panel, example.picture, title if right else f"{title} ✗")
        return figure
    title = f"Ground truth, and predictions with a score of at least {MIN_SCORE}"
    handles = [draw.box_handle("ground truth", TRUTH), draw.box_handle("prediction", PREDICTION)]
    figure, axes = draw.new_panels(2, len(results), aspect, title, handles)
    for column, (example, predictions) in enumerate(results):
        labels = [class_name(names, label) for label in example.labels]
        draw.draw_image(axes[0, column], example.picture, f"image {column}")
        draw.draw_boxes(axes[0, column], example.boxes, labels, TRUTH)
        shown = np.flatnonzero(predictions.scores >= MIN_SCORE)[:MAX_BOXES]
        labels = [f"{class_name(names, predictions.labels[i])} {predictions.scores[i]:.2f}" for i in shown]
        count = f"{len(shown)} predictions" if len(shown) != 1 else "1 prediction"
        draw.draw_image(axes[1, column], example.picture, count)
        draw.draw_boxes(axes[1, column], predictions.boxes[shown], labels, PREDICTION)
    return figure


def draw_decoder(
    results: Sequence[Result], records: Sequence[AttentionRecord], names: Sequence[str], queries: int = 3
) -> Figure:
    """What the best object queries of each image attend to, with their predicted boxes; one record per result."""
    first = records[0]
    handles = [*legend(first), draw.box_handle("prediction", PREDICTION)]
    columns = min(queries, len(results[0][1].queries))
    title = f"{_title(first)}: best queries"
    figure, axes = draw.new_panels(len(results), columns, _aspect(results), title, handles)
    for row, (example, predictions) in enumerate(results):
        for rank in range(columns):
            score, label = predictions.scores[rank], class_name(names, predictions.labels[rank])
            draw.draw_image(axes[row, rank], example.picture, f"{label} {score:.2f}", dim=0.35)
            draw.draw_boxes(axes[row, rank], predictions.boxes[rank : rank + 1], color=PREDICTION)
            draw_attention(axes[row, rank], records[row], int(predictions.queries[rank]))
    return figure


def draw_tokens(results: Sequence[Result], records: Sequence[Sequence[AttentionRecord]]) -> Figure:
    """What one token attends to: of attentions whose queries are maps, a column each and a row per image.

    Of one attention, a column per image.

    The token is at the centre of the best prediction; in classification at that of the image.
    """
    handles = list({handle.get_label(): handle for record in records[0] for handle in legend(record)}.values())
    alone = len(records[0]) == 1
    rows, columns = (1, len(results)) if alone else (len(results), len(records[0]))
    title = f"{_title(records[0][0])}: one token" if alone else "Attention of one token"
    figure, axes = draw.new_panels(rows, columns, _aspect(results), title, handles)
    for (row, (example, predictions)), column in product(enumerate(results), range(len(records[0]))):
        record, panel = records[row][column], axes[0, row] if alone else axes[row, column]
        box = predictions.boxes[0] if len(predictions.boxes) else np.array([0.0, 0.0, 1.0, 1.0])
        query = record.nearest_query((box[:2] + box[2:]) / 2)
        panel_title = f"image {row}" if alone else _title(record) if row == 0 else ""
        draw.draw_image(panel, example.picture, panel_title, dim=0.35)
        draw_attention(panel, record, query)
    return figure


def draw_offsets(offsets: Array, initial: Array, name: str, unit: str) -> Figure:
    """Offsets (N, M, P, 2) of sampling points by head and ring, beside the `initial` ones (M, P, 2), in `unit`.

    Squares have half widths 1, 2, … P, as initial rings have.
    """
    heads, rings = initial.shape[:2]
    columns = min(heads, 4)
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=4, color=draw.level_color(k), label=f"ring {k + 1}")
        for k in range(rings)
    ]
    handles += [
        Line2D([], [], linestyle="", marker="+", markersize=6, color="black", label="initial"),
        Line2D([], [], linestyle="", marker="D", markersize=4, color="white", markeredgecolor="black", label="mean"),
    ]
    title = f"{name}: offsets in {unit}"
    figure, axes = draw.new_panels(-(-heads // columns), columns, 1.0, title, handles)
    thinned = offsets[:: max(len(offsets) // MAX_DOTS, 1)]
    limit = 1.1 * max(float(np.quantile(np.abs(thinned), 0.98)), float(np.abs(initial).max()))
    for head, panel in zip(range(heads), axes.flat, strict=False):
        panel.set_title(f"head {head}", fontsize=8, pad=3)
        panel.set_xlim(-limit, limit)
        panel.set_ylim(limit, -limit)
        for k in range(rings + 1):
            panel.add_patch(Rectangle((-k, -k), 2 * k, 2 * k, fill=False, edgecolor="#BBBBBB", linewidth=0.6, zorder=0))
        panel.plot(0, 0, "x", color="#888888", markersize=4, zorder=0)
        for ring in range(rings):
            color = draw.level_color(ring)
            panel.plot(*thinned[:, head, ring].T, ".", color=color, markersize=2, alpha=0.35, zorder=1)
            ends = np.stack([initial[head, ring], offsets[:, head, ring].mean(0)])
            panel.plot(*ends.T, "-", color=color, linewidth=1.2, zorder=2)
            panel.plot(*ends[0], "+", color="black", markersize=6, markeredgewidth=1.2, zorder=4)
            panel.plot(*ends[1], "D", color=color, markersize=4, markeredgecolor="black", zorder=3)
    return figure


def _title(record: AttentionRecord) -> str:
    return f"{record.name}, {TITLES[record.kind]}" if record.kind is not None else record.name


def _aspect(results: Sequence[Result]) -> float:
    """Height / width of the panels: that of the tallest picture."""
    return max(example.picture.shape[0] / example.picture.shape[1] for example, _ in results)
