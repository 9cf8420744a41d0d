"""The plot of `bench scaling`."""

from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnzoo.rundir.folder import atomic_write


def plot_scaling(record: dict[str, Any], path: Path) -> None:
    """Time and peak memory against tokens and queries, a row per role and axis; png, pdf or svg.

    A line per attention, with its fitted exponent.
    """
    rows = [row for row in record["rows"] if row["axis"] in ("tokens", "queries")]
    panels = list(dict.fromkeys((row["role"], row["axis"]) for row in rows))
    passes = list(dict.fromkeys(row["pass"] for row in rows))
    figure = Figure(figsize=(9 * len(passes), 3.8 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 2 * len(passes), squeeze=False)
    for (role, axis), line in zip(panels, grid, strict=True):
        for index, pass_name in enumerate(passes):
            shown = [row for row in rows if (row["role"], row["axis"], row["pass"]) == (role, axis, pass_name)]
            fits = {
                fit["attention"]: fit
                for fit in record["fits"]
                if (fit["role"], fit["axis"], fit["pass"]) == (role, axis, pass_name)
            }
            _plot_costs(line[2 * index : 2 * index + 2], shown, fits)
            for axes, cost in zip(line[2 * index :], ("seconds per call", "peak bytes"), strict=False):
                axes.set(title=f"{role}, {pass_name}", xlabel=axis, ylabel=cost)
    figure.suptitle(f"{record['machine']['device']}, {record['machine']['threads']} threads")
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format=path.suffix.removeprefix("."))


def _plot_costs(panels: Any, rows: list[dict[str, Any]], fits: dict[str, dict[str, Any]]) -> None:
    """Time and memory of every attention into the two `panels`."""
    time, memory = panels
    for name in dict.fromkeys(row["attention"] for row in rows):
        points = [row for row in rows if row["attention"] == name]
        sizes, fit = [row["x"] for row in points], fits.get(name, {})
        _plot_line(time, sizes, [median(row["seconds"]) for row in points], name, fit.get("time"))
        _plot_line(memory, sizes, [row["peak_bytes"] for row in points], name, fit.get("memory"))
    for axes in panels:
        if axes.lines:
            axes.legend(fontsize="small")


def _plot_line(axes: Axes, sizes: list[int], values: list[Any], name: str, fit: dict[str, Any] | None) -> None:
    if all(values):
        exponent = f", exponent {fit['exponent']:.2f}" if fit else ""
        axes.loglog(sizes, values, "o-", label=name + exponent)
        axes.grid(alpha=0.3)
