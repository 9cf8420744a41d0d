"""Figures of the documentation that need results or trained runs.

    python tools/docs_figures.py overview runs/ablate_attention/ms_deform-seed=1000    # docs/images/overview.png
    python tools/docs_figures.py scenes runs/encoders                           # docs/attentions/figures/scene-*.png

The first draws learning curves and times from docs/results, and the sampling points of the given run. The second draws
the encoder's attention in each run of experiments/encoders.yaml.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from attnzoo import models
from attnzoo.config.load import load
from attnzoo.data.build import build_dataset, dataset_info
from attnzoo.engine.checkpoint import CheckpointManager, load_checkpoint
from attnzoo.geometry import Role
from attnzoo.inference import draw
from attnzoo.inference.attention import draw_attention, legend
from attnzoo.inference.examples import Example, Predictions, class_name, load_examples, read_predictions
from attnzoo.inference.records import AttentionRecord, record_attentions
from attnzoo.rundir.folder import RunFolder

DOCS = Path(__file__).parents[1] / "docs"
COLORS = {
    "ms_deform": draw.COLORS[6],
    "deform": draw.COLORS[1],
    "window": draw.COLORS[2],
    "dat": draw.COLORS[4],
    "dense": draw.COLORS[5],
    "neighborhood": draw.COLORS[0],
    "dcn": "#888888",
    "conv": "#000000",
}
IMAGES = 40  # of the validation set, among which a scene is chosen
Scene = tuple[Example, Predictions, list[AttentionRecord], Sequence[str]]


def read_scenes(folder: Path) -> list[Scene]:
    """Predictions and recorded attentions of a finished run on its first validation images."""
    run = RunFolder(folder)
    settings: Any = load(run.config)
    num_classes = models.resolve_num_classes(settings.model, dataset_info(settings.data).num_classes)
    model = models.build(settings.model, num_classes)
    checkpoint = CheckpointManager(run.checkpoints).best()
    assert checkpoint is not None, f"{folder}: no checkpoint"
    state = load_checkpoint(checkpoint)
    model.load_state_dict(state["model"] if state["ema"] is None else state["ema"])
    model.eval()
    val = build_dataset(settings.data, "val")
    scenes: list[Scene] = []
    for example in load_examples(val, IMAGES):
        records: list[AttentionRecord] = []
        with record_attentions(model, records.append), torch.no_grad():
            predictions = read_predictions(model(example.inputs), num_classes)
        scenes.append((example, predictions, records, val.class_names))
    return scenes


def draw_convergence(axes: Axes) -> None:
    """AP over steps of docs/results/ablate_attention: means over seeds with 95 % t-intervals."""
    scores: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in json.loads((DOCS / "results/ablate_attention/results.json").read_text())["runs"]:
        for row in run["metrics"]:
            if "val/AP" in row:
                scores[run["variant_name"]][row["step"]].append(row["val/AP"])
    for name, by_step in scores.items():
        steps, values = list(by_step), np.array(list(by_step.values()))
        mean, seeds = values.mean(1), values.shape[1]
        half = stats.t.ppf(0.975, seeds - 1) * values.std(1, ddof=1) / np.sqrt(seeds)
        axes.plot(steps, mean, color=COLORS[name], label=name, linewidth=1.8)
        axes.fill_between(steps, mean - half, mean + half, color=COLORS[name], alpha=0.2, linewidth=0)
    axes.set(xlabel="training steps", ylabel="AP", xlim=(0, 800), ylim=(0, None))
    axes.set_title(f"Attention of the decoder: AP,\nmean of {seeds} seeds, 95 % interval", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def draw_times(axes: Axes) -> None:
    """Time against tokens of docs/results/operators/scaling.json."""
    times: dict[str, dict[int, float]] = defaultdict(dict)
    for row in json.loads((DOCS / "results/operators/scaling.json").read_text())["rows"]:
        in_encoder = row.get("role", "encoder") == "encoder"
        if in_encoder and row["axis"] == "tokens" and row["pass"] == "forward+backward":
            times[row["attention"]][row["x"]] = float(np.median(row["seconds"]))
    for name, by_tokens in times.items():
        tokens, seconds = list(by_tokens), list(by_tokens.values())
        axes.loglog(tokens, seconds, "o-", color=COLORS[name], label=name, linewidth=1.5, markersize=3)
    axes.set(xlabel="tokens on the map", ylabel="seconds")
    axes.set_title("Attention of an encoder: time,\nforward + backward, 2 CPU threads", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def draw_scene(axes: Axes, scene: Scene) -> None:
    """What the last decoder layer samples for the most certain prediction."""
    example, predictions, records, names = scene
    record = [record for record in records if record.role == Role.DECODER][-1]
    draw.draw_image(axes, example.picture, dim=0.35)
    draw.draw_boxes(axes, predictions.boxes[:1], color=draw.COLORS[4])
    draw_attention(axes, record, int(predictions.queries[0]))
    axes.set_axis_off()
    title = f'Where a query looks: "{class_name(names, predictions.labels[0])}"'
    axes.set_title(f"{title},\nsampling points of ms_deform", fontsize=9)
    handles = [*legend(record), draw.box_handle("prediction", draw.COLORS[4])]
    axes.legend(handles=handles, frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2)


def overview(run: Path) -> None:
    figure = Figure(figsize=(11.5, 3.7), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    convergence, scene, times = figure.subplots(1, 3)
    draw_convergence(convergence)
    draw_scene(scene, max(read_scenes(run), key=lambda scene: scene[1].scores[0]))
    draw_times(times)
    for axes in (convergence, times):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    (DOCS / "images").mkdir(exist_ok=True)
    figure.savefig(DOCS / "images" / "overview.png")


def scenes(runs: Path) -> None:
    """The same image for every attention, with what two tokens attend to, each on an object."""
    for folder in sorted(runs.glob("*-seed=0")):
        if folder.name.startswith("deform"):
            continue  # the page has ms_deform's
        example, _, records, names = max(read_scenes(folder), key=lambda scene: len(scene[0].labels))
        record = [record for record in records if record.role == Role.ENCODER][-1]
        taps = folder.name.startswith("dcn")  # they lie between pixels
        keys = [*draw.level_handles(1), draw.reference_handle(boxes=False)] if taps else legend(record)
        figure, axes = draw.new_panels(1, 3, legend=keys)
        draw.draw_image(axes[0, 0], example.picture, "a scene")
        for panel, box, label in zip(axes[0, 1:], example.boxes, example.labels, strict=False):
            draw.draw_image(panel, example.picture, f'a token on "{class_name(names, label)}"', dim=0.35)
            token = record.nearest_query((box[:2] + box[2:]) / 2)
            if taps:
                assert record.locations is not None
                weights = record.weights[token].mean(0)
                draw.draw_sampling_points(panel, record.locations[token][None, None], weights[None, None])
                draw.draw_reference(panel, (box[:2] + box[2:]) / 2)
            else:
                draw_attention(panel, record, token)
        figure.savefig(DOCS / "attentions" / "figures" / f"scene-{folder.name.removesuffix('-seed=0')}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=["overview", "scenes"])
    parser.add_argument("folder", type=Path, help="a finished run, or the runs of experiments/encoders.yaml")
    args = parser.parse_args()
    {"overview": overview, "scenes": scenes}[args.figure](args.folder)


if __name__ == "__main__":
    main()
