"""The plot of `bench scaling`."""

from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnzoo.rundir.folder import atomic_write


def plot_scaling(record: dict[str, Any], path: Path) -> None:
    """Time and peak memory against tokens, one line per attention with its fitted exponent; png, pdf or svg."""
    rows = [row for row in record["rows"] if row["axis"] == "tokens"]
    fits = {(fit["attention"], fit["pass"]): fit for fit in record["fits"] if fit["axis"] == "tokens"}
    passes = list(dict.fromkeys(row["pass"] for row in rows))
    figure = Figure(figsize=(5 * len(passes), 8), layout="constrained")
    grid = figure.subplots(2, len(passes), squeeze=False, sharex=True)
    for pass_name, (time, memory) in zip(passes, grid.T, strict=True):
        time.set_title(pass_name)
        time.set_ylabel("seconds per call")
        memory.set_ylabel("peak bytes")
        memory.set_xlabel("tokens")
        for name in dict.fromkeys(row["attention"] for row in rows):
            points = [row for row in rows if (row["attention"], row["pass"]) == (name, pass_name)]
            fit = fits.get((name, pass_name), {})
            tokens = [row["tokens"] for row in points]
            _plot_line(time, tokens, [median(row["seconds"]) for row in points], name, fit.get("time"))
            _plot_line(memory, tokens, [row["peak_bytes"] for row in points], name, fit.get("memory"))
        time.legend()
        memory.legend()
    figure.suptitle(f"{record['machine']['device']}, {record['machine']['threads']} threads")
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format=path.suffix.removeprefix("."))


def _plot_line(axes: Axes, tokens: list[int], values: list[Any], name: str, fit: dict[str, Any] | None) -> None:
    if all(values):
        exponent = f", exponent {fit['exponent']:.2f}" if fit else ""
        axes.loglog(tokens, values, "o-", label=name + exponent)
        axes.grid(alpha=0.3)
