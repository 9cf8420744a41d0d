"""A comparison as a table: for the terminal, as Markdown, as CSV."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from attnzoo.config.labels import text
from attnzoo.report.console import console
from attnzoo.report.statistics import Estimate

if TYPE_CHECKING:
    from attnzoo.report.compare import Comparison, Variant

MISSING = "n/a"


@dataclass(frozen=True)
class Column:
    """A measured column: its title, its name in CSV files, the metric, how a cell is written, and whose task it is."""

    title: str
    name: str
    key: str
    form: Callable[[Estimate], str]
    task: str | None = None


COLUMNS = (
    Column("AP", "AP", "val/AP", lambda e: _with_margin(e, 3), "detection"),
    Column("AP50", "AP50", "val/AP50", lambda e: _with_margin(e, 3), "detection"),
    Column("top-1", "top1", "val/top1", lambda e: _with_margin(e, 3), "classification"),
    Column("top-5", "top5", "val/top5", lambda e: _with_margin(e, 3), "classification"),
    Column("params", "params", "cost/params", lambda e: f"{e.mean:,.0f}"),
    Column("GFLOPs", "gflops", "cost/gflops", lambda e: f"{e.mean:.4g}"),
    Column("ms / image", "ms", "cost/ms", lambda e: f"{e.mean:.2f}"),
    Column("train images / s", "images_per_second", "speed/images_per_second", lambda e: f"{e.mean:.4g}"),
    Column("peak MiB", "peak_mib", "speed/peak_mib", lambda e: f"{e.mean:,.0f}"),
)


def _measured(comparison: "Comparison") -> list[Column]:
    """The columns of the runs' tasks; those of speed only where a run has measured it."""
    keys = {key for variant in comparison.variants for key, found in variant.estimates.items() if found}
    mine = [column for column in COLUMNS if column.task is None or column.task in comparison.tasks]
    return [column for column in mine if column.key in keys or not column.key.startswith("speed/")]


def rich_table(comparison: "Comparison") -> Table:
    """The table for a terminal."""
    header, rows = _cells(comparison)
    table = Table()
    for place, title in enumerate(header):
        longest = max(len(row[place]) for row in (header, *rows))
        if place < len(comparison.columns):
            table.add_column(title, overflow="fold")
        else:  # numbers: narrowed after the options, and never cut
            table.add_column(title, overflow="fold", justify="right", width=longest)
    for row in rows:
        table.add_row(*row)
    return table


def show(comparison: "Comparison") -> None:
    """Print the table and its notes; lines of any length where there is no terminal."""
    out = console()
    out.print(rich_table(comparison))
    for note in comparison.notes:
        out.print(note, markup=False, soft_wrap=True)


def markdown(comparison: "Comparison") -> str:
    """The table and its notes as Markdown."""
    header, rows = _cells(comparison)
    rule = ["---"] * len(comparison.columns) + ["--:"] * (len(header) - len(comparison.columns))
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (header, rule, *rows)]
    return "\n".join([*lines, "", *(f"{note}  " for note in comparison.notes)]) + "\n"


def to_csv(comparison: "Comparison") -> str:
    """Full numbers, one row per variant; means and margins in columns of their own, empty where there are none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    measured = [(column.name, column.key) for column in _measured(comparison)]
    names = [name for metric, _ in measured for name in (metric, f"{metric}_margin95")]
    writer.writerow([*comparison.columns, *names, "seeds", "unfinished"])
    for variant in comparison.variants:
        numbers: list[Any] = []
        for _, key in measured:
            found = variant.estimates[key]
            numbers += [found.mean, found.margin] if found else [None, None]
        writer.writerow(
            [*_options(comparison, variant), *numbers, " ".join(map(str, variant.seeds)), "; ".join(variant.unfinished)]
        )
    return out.getvalue()


def _cells(comparison: "Comparison") -> tuple[list[str], list[list[str]]]:
    columns = [(column.title, column.key, column.form) for column in _measured(comparison)]
    header = [*comparison.columns, *(title for title, _, _ in columns), "seeds"]
    rows = []
    for variant in comparison.variants:
        cells = [form(e) if (e := variant.estimates[key]) else MISSING for _, key, form in columns]
        seeds = ", ".join([str(len(variant.seeds)), *variant.unfinished])
        rows.append([*_options(comparison, variant), *cells, seeds])
    return header, rows


def _options(comparison: "Comparison", variant: "Variant") -> list[str]:
    return [text(variant.options[column]) if column in variant.options else "" for column in comparison.columns]


def _with_margin(estimate: Estimate, digits: int) -> str:
    margin = MISSING if estimate.margin is None else f"{estimate.margin:.{digits}f}"
    return f"{estimate.mean:.{digits}f} ± {margin}"
