"""A comparison as a table in the terminal, Markdown and CSV."""

import csv
import io
from pathlib import Path
from typing import Any

from rich.table import Table

from attnzoo.report.comparison import Comparison, Variant
from attnzoo.report.console import console
from attnzoo.report.statistics import Estimate
from attnzoo.rundir.folder import atomic_write
from attnzoo.rundir.metrics import COST_METRICS, MEMORY_METRICS, TASK_METRICS, Metric
from attnzoo.schema.keys import format_value

NOT_AVAILABLE = "n/a"


def _metric_columns(comparison: Comparison) -> list[Metric]:
    """The validation metrics of the runs' tasks, cost, and memory if any run has it."""
    validation = [metric for task, metrics in TASK_METRICS.items() if task in comparison.tasks for metric in metrics]
    measured = {key for variant in comparison.variants for key, estimate in variant.estimates.items() if estimate}
    memory = [metric for metric in MEMORY_METRICS if metric.key in measured]
    return list(dict.fromkeys([*validation, *COST_METRICS, *memory]))


def rich_table(comparison: Comparison) -> Table:
    """The table for the terminal."""
    header, rows = _cells(comparison)
    table = Table()
    for index, title in enumerate(header):
        max_width = max(len(row[index]) for row in (header, *rows))
        if index < len(comparison.columns):
            table.add_column(title, overflow="fold")
        else:  # keep numbers on one line; options wrap first
            table.add_column(title, overflow="fold", justify="right", width=max_width)
    for row in rows:
        table.add_row(*row)
    return table


def print_comparison(comparison: Comparison) -> None:
    """Print the table and its notes, without wrapping if not to a terminal."""
    terminal = console()
    terminal.print(rich_table(comparison))
    for note in comparison.notes:
        terminal.print(note, markup=False, soft_wrap=True)


def markdown(comparison: Comparison) -> str:
    """The table and its notes as Markdown."""
    header, rows = _cells(comparison)
    separator = ["---"] * len(comparison.columns) + ["--:"] * (len(header) - len(comparison.columns))
    table = (header, separator, *rows)
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table]
    return "\n".join([*lines, "", *(f"{note}  " for note in comparison.notes)]) + "\n"


def to_csv(comparison: Comparison) -> str:
    """One row per variant with unrounded numbers; mean and ci95 are separate columns, empty if missing."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    metrics = _metric_columns(comparison)
    names = [name for metric in metrics for name in (metric.name, f"{metric.name}_ci95")]
    writer.writerow([*comparison.columns, *names, "seeds", "unfinished", "differs"])
    for variant in comparison.variants:
        numbers: list[Any] = []
        for metric in metrics:
            estimate = variant.estimates[metric.key]
            numbers += [estimate.mean, estimate.ci95] if estimate else [None, None]
        writer.writerow(
            [
                *_options(comparison, variant),
                *numbers,
                " ".join(map(str, variant.seeds)),
                "; ".join(variant.unfinished),
                " ".join(variant.footnotes),
            ]
        )
    return buffer.getvalue()


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write comparison.md and comparison.csv in `folder`; returns their paths."""
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
        marks = "".join(f" [{number}]" for number in sorted(variant.footnotes.values()))
        seeds = ", ".join([f"{len(variant.seeds)}{marks}", *variant.unfinished])
        rows.append([*_options(comparison, variant), *cells, seeds])
    return header, rows


def _options(comparison: Comparison, variant: Variant) -> list[str]:
    return [format_value(variant.options[column]) if column in variant.options else "" for column in comparison.columns]


def _cell(metric: Metric, estimate: Estimate | None) -> str:
    if estimate is None:
        return NOT_AVAILABLE
    mean = format(estimate.mean, metric.format_spec)
    if not metric.is_validation:
        return mean
    return f"{mean} ± {NOT_AVAILABLE if estimate.ci95 is None else format(estimate.ci95, metric.format_spec)}"
