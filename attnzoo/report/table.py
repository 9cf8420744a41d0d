"""A comparison as a table: for the terminal, as Markdown, as CSV."""

import csv
import io
from pathlib import Path
from typing import Any

from rich.table import Table

from attnzoo.report.comparison import Comparison, Variant
from attnzoo.report.console import console
from attnzoo.report.statistics import Estimate
from attnzoo.rundir.folder import atomic_write
from attnzoo.rundir.metrics import METRICS, Metric
from attnzoo.schema.labels import text

NOT_AVAILABLE = "n/a"


def _metric_columns(comparison: Comparison) -> list[Metric]:
    """The columns: scores of the runs' tasks, and what is optional only where a run has it."""
    keys = {key for variant in comparison.variants for key, found in variant.estimates.items() if found}
    mine = [metric for metric in METRICS if metric.task is None or metric.task in comparison.tasks]
    return [metric for metric in mine if metric.key in keys or not metric.is_optional]


def rich_table(comparison: Comparison) -> Table:
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


def print_comparison(comparison: Comparison) -> None:
    """Print the table and its notes; lines of any length where there is no terminal."""
    out = console()
    out.print(rich_table(comparison))
    for note in comparison.notes:
        out.print(note, markup=False, soft_wrap=True)


def markdown(comparison: Comparison) -> str:
    """The table and its notes as Markdown."""
    header, rows = _cells(comparison)
    rule = ["---"] * len(comparison.columns) + ["--:"] * (len(header) - len(comparison.columns))
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (header, rule, *rows)]
    return "\n".join([*lines, "", *(f"{note}  " for note in comparison.notes)]) + "\n"


def to_csv(comparison: Comparison) -> str:
    """Full numbers, one row per variant; means and margins in columns of their own, empty where there are none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    metrics = _metric_columns(comparison)
    names = [name for metric in metrics for name in (metric.name, f"{metric.name}_margin95")]
    writer.writerow([*comparison.columns, *names, "seeds", "unfinished"])
    for variant in comparison.variants:
        numbers: list[Any] = []
        for metric in metrics:
            found = variant.estimates[metric.key]
            numbers += [found.mean, found.ci95] if found else [None, None]
        writer.writerow(
            [*_options(comparison, variant), *numbers, " ".join(map(str, variant.seeds)), "; ".join(variant.unfinished)]
        )
    return out.getvalue()


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """comparison.md and comparison.csv in `folder`."""
    written = []
    for name, content in (("comparison.md", markdown(comparison)), ("comparison.csv", to_csv(comparison))):
        written.append(folder / name)
        with atomic_write(written[-1]) as file:
            file.write(content)
    return written


def _cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    metrics = _metric_columns(comparison)
    header = [*comparison.columns, *(metric.title for metric in metrics), "seeds"]
    rows = []
    for variant in comparison.variants:
        cells = [_cell(metric, variant.estimates[metric.key]) for metric in metrics]
        seeds = ", ".join([str(len(variant.seeds)), *variant.unfinished])
        rows.append([*_options(comparison, variant), *cells, seeds])
    return header, rows


def _options(comparison: Comparison, variant: Variant) -> list[str]:
    return [text(variant.options[column]) if column in variant.options else "" for column in comparison.columns]


def _cell(metric: Metric, found: Estimate | None) -> str:
    if found is None:
        return NOT_AVAILABLE
    mean = format(found.mean, metric.format_spec)
    if not metric.is_score:
        return mean
    return f"{mean} ± {NOT_AVAILABLE if found.ci95 is None else format(found.ci95, metric.format_spec)}"
