"""Pictures of profiles: a heat map of attention × probe, or curves over the difficulty of each probe."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from attnzoo.errors import as_options
from attnzoo.paths import output_file
from attnzoo.probe.profile import SHARE, ProbeScore
from attnzoo.rundir.folder import atomic_write

FORMATS = ("png", "pdf", "svg")


def check_path(path: Path) -> None:
    """Raise UserError for a file whose format is not one of FORMATS, or that cannot be written."""
    with as_options(plot="--plot"):
        output_file(path, [f".{name}" for name in FORMATS], "plot")


def plot(profile: Sequence[ProbeScore], path: Path) -> None:
    """Curves over difficulty where an attention met several difficulties of one probe, else the heat map."""
    met = [(score.attention, score.probe) for score in profile]
    (plot_profile if len(set(met)) == len(met) else plot_curves)(profile, path)


def plot_curves(profile: Sequence[ProbeScore], path: Path) -> None:
    """Accuracy of every attention against difficulty, a panel for each probe; png, pdf or svg.

    Lines are means over seeds, dots are seeds; chance is dotted.
    """
    attentions = list(dict.fromkeys(score.attention for score in profile))
    probes = list(dict.fromkeys(score.probe for score in profile))
    columns = min(4, len(probes))
    lines = math.ceil(len(probes) / columns)
    figure = Figure(figsize=(3.1 * columns, 2.6 * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for axis in panels[len(probes) :]:
        axis.set_axis_off()
    for axis, probe in zip(panels, probes, strict=False):
        axis.grid(alpha=0.3)
        shown = [score for score in profile if score.probe == probe]
        values = sorted({score.value for score in shown})
        chance = {score.value: score.chance for score in shown}
        axis.plot(range(len(values)), [chance[value] for value in values], "k:", linewidth=1, label="chance")
        for index, name in enumerate(attentions):
            points = sorted((score for score in shown if score.attention == name), key=lambda score: score.value)
            if not points:
                continue
            shift = 0.04 * (index - (len(attentions) - 1) / 2)  # dots of attentions beside each other
            places = [values.index(score.value) + shift for score in points]
            seeds = [(place, value) for place, score in zip(places, points, strict=True) for value in score.scores]
            axis.plot(places, [score.score for score in points], color=f"C{index}", linewidth=1.3, label=name)
            axis.plot(*zip(*seeds, strict=True), "o", color=f"C{index}", markersize=3, alpha=0.6)
        axis.set(title=probe, xlabel=shown[0].difficulty, ylim=(0, 1.03))
        axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    figure.supylabel("accuracy")
    lines_by_name = {line.get_label(): line for axis in panels for line in axis.get_lines()}
    shown_names = ["chance", *attentions]
    figure.legend(
        [lines_by_name[name] for name in shown_names], shown_names, loc="outside lower center",
        ncols=len(shown_names), frameon=False,
    )  # fmt: skip
    _save(figure, path)


def plot_profile(profile: Sequence[ProbeScore], path: Path) -> None:
    """Accuracy, steps to 90 % and cost of every attention on every probe; png, pdf or svg.

    Colours are those of viridis, whose lightness orders the values for every kind of colour vision; cells have numbers.
    """
    attentions = list(dict.fromkeys(score.attention for score in profile))
    probes = list(dict.fromkeys(score.label for score in profile))
    cells = {(score.attention, score.label): score for score in profile}
    panels: list[tuple[str, Callable[[ProbeScore], float | None], str, bool]] = [
        ("accuracy\n(colour: 0 at chance, 1 at the ceiling)", lambda cell: cell.normalized, "{:.2f}", False),
        (f"steps to {SHARE:.0%} of the way to the ceiling", lambda cell: cell.steps, "{:.0f}", True),
        ("cost: million multiply-accumulates per map", lambda cell: cell.mflops, "{:.1f}", True),
    ]
    width, height = 1.5 + 0.62 * len(probes), 2.2 + 0.38 * len(attentions)
    figure = Figure(figsize=(len(panels) * width, height), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, value, form, is_cost) in zip(axes, panels, strict=True):
        rows = [[_value(value, cells.get((name, probe))) for probe in probes] for name in attentions]
        found = [number for row in rows for number in row if math.isfinite(number)]
        if is_cost:  # the colours of small values are the light ones, as those of high accuracy
            norm = LogNorm(min(found, default=1), max([*found, min(found, default=1) * 1.01]))
            axis.imshow(rows, cmap="viridis_r", norm=norm, aspect="auto")
        else:
            axis.imshow(rows, cmap="viridis", vmin=0, vmax=1, aspect="auto")
            norm = None
        for y, name in enumerate(attentions):
            for x, probe in enumerate(probes):
                cell, number = cells.get((name, probe)), rows[y][x]
                if cell is None:
                    continue
                shown = cell.score if not is_cost else number
                text = form.format(shown) if math.isfinite(shown) else "–"
                shade = _lightness(number, norm)
                axis.text(x, y, text, ha="center", va="center", fontsize=8, color="black" if shade > 0.55 else "white")
        axis.set_title(title, fontsize=9)
        axis.set_xticks(range(len(probes)), probes, rotation=45, ha="right", fontsize=8)
        axis.set_yticks(range(len(attentions)), attentions, fontsize=8)
        axis.set_facecolor("#e8e8e8")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format=path.suffix.removeprefix(".").lower(), dpi=150, metadata=_metadata(path))


def _lightness(number: float, norm: LogNorm | None) -> float:
    """Of a cell's colour, 0 to 1; cells without a value are light grey."""
    if not math.isfinite(number):
        return 1.0
    return number if norm is None else 1 - float(norm(number))


def _value(value: Callable[[ProbeScore], float | None], cell: ProbeScore | None) -> float:
    number = None if cell is None else value(cell)
    return float("nan") if number is None else number


def _metadata(path: Path) -> dict[str, None] | None:
    """No date in the file, so that the same runs give the same bytes."""
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
