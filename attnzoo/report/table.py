"""A comparison as a table in the terminal, Markdown and CSV."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from attnzoo.console import console
from attnzoo.errors import printable
from attnzoo.report.comparison import Comparison, Variant
from attnzoo.report.paired import PairedResult
from attnzoo.report.pairs import TARGET, PairedRow, PairedTable
from attnzoo.report.statistics import Estimate
from attnzoo.rundir.folder import atomic_write
from attnzoo.rundir.metrics import COST_METRICS, MEMORY_METRICS, TASK_METRICS, Metric
from attnzoo.schema.keys import format_value

NOT_AVAILABLE = "n/a"
AA_COPY = "A/A copy"  # in place of a verdict
PAIRED_COLUMNS = ("verdict", "difference", "difference_low", "difference_high", "pairs", "p_holm")  # of the CSV


def _metric_columns(comparison: Comparison) -> list[Metric]:
    """The validation metrics of the runs' tasks, cost, and memory if any run has it."""
    validation = [metric for task, metrics in TASK_METRICS.items() if task in comparison.tasks for metric in metrics]
    measured = {key for variant in comparison.variants for key, estimate in variant.estimates.items() if estimate}
    memory = [metric for metric in MEMORY_METRICS if metric.key in measured]
    if any(column.quantity == "training_memory" for column in _cost_columns(comparison)):
        memory = []  # of whole processes, which may have trained other runs before
    return list(dict.fromkeys([*validation, *COST_METRICS, *memory]))


class CostColumn(NamedTuple):
    """A measured cost in the table: a ratio to the baseline of costs.json, or the quantity itself."""

    quantity: str  # its key in costs.json
    title: str
    name: str  # in CSV and JSON
    is_ratio: bool
    meaning: str

    def value(self, comparison: Comparison, variant: Variant) -> float | None:
        """The median; None if not measured."""
        get = comparison.cost_ratio if self.is_ratio else comparison.cost
        quartiles = get(variant, self.quantity)
        return None if quartiles is None else quartiles.median

    def cell(self, comparison: Comparison, variant: Variant) -> str:
        """The value for tables."""
        value = self.value(comparison, variant)
        return NOT_AVAILABLE if value is None else f"{value:.2f}×" if self.is_ratio else f"{value:,.0f}"


COST_COLUMNS = (
    CostColumn("latency", "latency", "latency_ratio", True, "of inference on one image"),
    CostColumn("training", "train step", "training_step_ratio", True, "one step on one batch"),
    CostColumn("training_memory", "train MiB", "training_mib", False, "peak memory of that step above weights"),
)


def _cost_columns(comparison: Comparison) -> list[CostColumn]:
    """Those that were measured for any variant."""
    return [
        column
        for column in COST_COLUMNS
        if any(column.value(comparison, variant) is not None for variant in comparison.variants)
    ]


def table_notes(comparison: Comparison) -> list[str]:
    """The notes of the table: what its columns mean, and what the runs do not share."""
    notes = list(comparison.notes)
    if comparison.costs is not None and (columns := _cost_columns(comparison)):
        cpu = (comparison.costs.environment.get("machine") or {}).get("cpu")
        meanings = ", ".join(f"{column.title}: {column.meaning}" for column in columns)
        notes.append(
            f"Costs, measured together{f' on {cpu}' if cpu else ''} (× is the ratio to {comparison.costs.baseline}): "
            f"{meanings}. See docs/costs.md."
        )
    return notes


def rich_table(comparison: Comparison) -> Table:
    """The table for the terminal."""
    header, rows = cells(comparison)
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
    """Print the tables, their notes and the verdicts, without wrapping if not to a terminal."""
    terminal = console()
    terminal.print(rich_table(comparison))
    for note in table_notes(comparison):
        terminal.print(note, markup=False, soft_wrap=True)
    if comparison.paired is not None:
        terminal.print(_rich_paired_table(comparison.paired))
        for line in [*paired_notes(comparison.paired), *comparison.paired.sentences()]:
            terminal.print(line, markup=False, soft_wrap=True)


def _rich_paired_table(paired: PairedTable) -> Table:
    header, rows = paired_cells(paired)
    table = Table(title=paired_title(paired))
    for title in header[:2]:
        table.add_column(title, overflow="fold")
    for title in header[2:]:
        table.add_column(title, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(comparison: Comparison) -> str:
    """The verdicts, the tables and their notes as Markdown; control characters become escapes."""
    header, rows = cells(comparison)
    lines = [
        *_markdown_table(header, rows, len(comparison.columns)),
        "",
        *(f"{note}  " for note in table_notes(comparison)),
    ]
    if comparison.paired is not None:
        sentences = [f"- {sentence}" for sentence in comparison.paired.sentences()]
        notes = [f"{note}  " for note in paired_notes(comparison.paired)]
        paired = _markdown_table(*paired_cells(comparison.paired), 2)
        lines = [*sentences, "", *lines, "", f"{paired_title(comparison.paired)}:", "", *paired, "", *notes]
    return "\n".join(map(printable, lines)) + "\n"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], num_text_columns: int) -> list[str]:
    separator = ["---"] * num_text_columns + ["--:"] * (len(header) - num_text_columns)
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (header, separator, *rows)]


def paired_title(paired: PairedTable) -> str:
    """The title of the paired table."""
    return f"{paired.metric.title} compared with {paired.baseline}, by seed"


def paired_cells(paired: PairedTable) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the paired table, with BCa intervals if there are enough pairs for any."""
    has_bca = any(row.final.bca is not None for row in paired.rows)
    header = [
        "variant", "verdict", "difference [95 %]", *(["BCa [95 %]"] if has_bca else []), "pairs", "p (Holm)",
        "p (sign flip)", "P(better)", "area under curve", "steps", "correlation",
    ]  # fmt: skip
    spec = f"+{paired.metric.format_spec}"
    steps = _number(paired.steps_to_target[paired.baseline], ",.0f")
    rows = [[paired.baseline, "baseline", *[""] * (6 + has_bca), steps, ""]]
    for row in paired.rows:
        final = row.final
        holm = _p_value(final.holm_p) if final.holm_p is not None else ""
        rows.append(
            [
                row.name,
                AA_COPY if row.is_aa else final.words,
                difference(final, spec),
                *([_bounds(final.bca, spec)] if has_bca else []),
                f"{final.pairs} of {final.pairs + final.later}" if final.later else str(final.pairs),
                "" if row.is_aa else holm,
                _p_value(final.sign_flip_p),
                _number(final.probability_better, ".2f"),
                difference(row.area, spec),
                _number(paired.steps_to_target[row.name], ",.0f"),
                _number(row.correlation, "+.2f"),
            ]
        )
    return header, rows


def paired_notes(paired: PairedTable) -> list[str]:
    """What the columns of the paired table mean."""
    metric, target = paired.metric, _number(paired.target, paired.metric.format_spec)
    chosen = "" if paired.is_given else " (the first; choose another with --baseline or sweep.baseline)"
    rounds = "the rounds of seeds and " if paired.is_sequential else ""
    share = f", {TARGET:.0%} of the baseline's mean" if paired.target_is_relative else ""
    repeated = "repeated " if paired.is_sequential else ""
    margin = f"± {paired.margin:g} {metric.title}" if paired.margin else "not set, so no variant can be equivalent"
    empty = (
        " p (Holm) is empty: with rounds of seeds each round has its own limit of p, which the verdict accounts for."
        if paired.is_sequential
        else ""
    )
    return [
        f"Baseline: {paired.baseline}{chosen}. Differences of runs with the same seed, with the {repeated}95 % "
        f"interval of each variant by itself; verdicts: paired t-tests, corrected for {rounds}all variants (Holm). "
        f"Margin: {margin}.{empty} See docs/statistics.md.",
        f"area under curve: difference of the mean {metric.title} over training; steps: median steps to "
        f"{metric.title} {target}{share}; correlation: of both variants' {metric.title} over seeds.",
    ]


def difference(result: PairedResult, spec: str) -> str:
    """A mean difference and its interval."""
    if result.mean is None:
        return NOT_AVAILABLE
    return f"{result.mean:{spec}} {_bounds(result.interval, spec)}"


def _bounds(interval: tuple[float, float] | None, spec: str) -> str:
    return f"[{NOT_AVAILABLE}]" if interval is None else f"[{interval[0]:{spec}}, {interval[1]:{spec}}]"


def _p_value(value: float | None) -> str:
    if value is None:
        return NOT_AVAILABLE
    return "<0.001" if value < 0.001 else format(value, ".3f")


def _number(value: float | None, spec: str) -> str:
    return NOT_AVAILABLE if value is None else format(value, spec)


def to_json(comparison: Comparison) -> str:
    """The variants with unrounded numbers, the paired differences and the notes."""
    metrics, costs = _metric_columns(comparison), _cost_columns(comparison)
    variants = [
        {
            "options": variant.options,
            "metrics": {
                metric.name: asdict(estimate) if (estimate := variant.estimates[metric.key]) else None
                for metric in metrics
            },
            "costs": {column.name: column.value(comparison, variant) for column in costs},
            "cpu_hours": variant.cpu_hours,
            "gpu_hours": variant.gpu_hours,
            "seeds": variant.seeds,
            "unfinished": variant.unfinished,
            "differs": sorted(variant.footnotes),
        }
        for variant in comparison.variants
    ]
    paired = None if comparison.paired is None else _paired_json(comparison.paired)
    return json.dumps({"variants": variants, "paired": paired, "notes": table_notes(comparison)}, indent=1)


def _paired_json(paired: PairedTable) -> dict[str, Any]:
    """The paired table; a verdict only where one is given: not of the area under the curve, nor of the A/A copy."""
    values = asdict(paired)
    for row in values["rows"]:
        for result in (row["area"], *([row["final"]] if row["is_aa"] else [])):
            for key in ("verdict", "more_pairs", "holm_p"):
                del result[key]
    return values


def _paired_values(row: PairedRow | None) -> list[Any]:
    """In the order of `PAIRED_COLUMNS`; those of the baseline are empty."""
    if row is None:
        return [None] * len(PAIRED_COLUMNS)
    result = row.final
    verdict, holm = (AA_COPY, None) if row.is_aa else (result.verdict, result.holm_p)
    return [verdict, result.mean, *(result.interval or (None, None)), result.pairs, holm]


def to_csv(comparison: Comparison) -> str:
    """One row per variant with unrounded numbers; mean and ci95 are separate columns, empty if missing."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    metrics, costs = _metric_columns(comparison), _cost_columns(comparison)
    names = [name for metric in metrics for name in (metric.name, f"{metric.name}_ci95")]
    names += [column.name for column in costs]
    results = {row.name: row for row in comparison.paired.rows} if comparison.paired else {}
    names += [*PAIRED_COLUMNS] if comparison.paired else []
    writer.writerow([*comparison.columns, *names, "cpu_hours", "gpu_hours", "seeds", "unfinished", "differs"])
    for variant in comparison.variants:
        numbers: list[Any] = []
        for metric in metrics:
            estimate = variant.estimates[metric.key]
            numbers += [estimate.mean, estimate.ci95] if estimate else [None, None]
        numbers += [column.value(comparison, variant) for column in costs]
        if comparison.paired:
            numbers += _paired_values(results.get(variant.name))
        writer.writerow(
            [
                *_options(comparison, variant),
                *numbers,
                variant.cpu_hours,
                variant.gpu_hours,
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


def cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the table."""
    metrics, costs = _metric_columns(comparison), _cost_columns(comparison)
    all_hours = {
        "CPU hours": [variant.cpu_hours for variant in comparison.variants],
        "GPU hours": [variant.gpu_hours for variant in comparison.variants],
    }
    all_hours = {title: hours for title, hours in all_hours.items() if any(value is not None for value in hours)}
    titles = [*(metric.title for metric in metrics), *(column.title for column in costs)]
    header = [*comparison.columns, *titles, *all_hours, "seeds"]
    rows = []
    for index, variant in enumerate(comparison.variants):
        numbers = [_cell(metric, variant.estimates[metric.key]) for metric in metrics]
        numbers += [column.cell(comparison, variant) for column in costs]
        marks = "".join(f" [{number}]" for number in sorted(variant.footnotes.values()))
        seeds = ", ".join([f"{len(variant.seeds)}{marks}", *variant.unfinished])
        hours = [_number(column[index], ".3g") for column in all_hours.values()]
        rows.append([*_options(comparison, variant), *numbers, *hours, seeds])
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
