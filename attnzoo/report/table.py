"""A comparison as a table: for the terminal, as Markdown, as CSV."""

import csv
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.table import Table

from attnzoo.config.labels import text
from attnzoo.report.console import console
from attnzoo.report.statistics import Estimate

if TYPE_CHECKING:
    from attnzoo.report.compare import Comparison, Variant

MISSING = "n/a"


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
    measured = [("AP", "val/AP"), ("AP50", "val/AP50"), ("params", "cost/params"), ("gflops", "cost/gflops")]
    measured.append(("ms", "cost/ms"))
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
    columns: list[tuple[str, str, Callable[[Estimate], str]]] = [
        ("AP", "val/AP", lambda e: _with_margin(e, 3)),
        ("AP50", "val/AP50", lambda e: _with_margin(e, 3)),
        ("params", "cost/params", lambda e: f"{e.mean:,.0f}"),
        ("GFLOPs", "cost/gflops", lambda e: f"{e.mean:.4g}"),
        ("ms / image", "cost/ms", lambda e: f"{e.mean:.2f}"),
    ]
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
