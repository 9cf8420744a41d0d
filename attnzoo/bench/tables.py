"""Benchmark records as tables, for the terminal and as Markdown."""

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from attnzoo.bench.operators.base import OURS
from attnzoo.bench.operators.revisions import BASE, TREE, verdict
from attnzoo.bench.timing import quartiles, time_ratios

DASH = "–"
CONVOLUTION = "conv"  # with whose time per FLOP others are compared
TOKENS_PER_FLOP = 2**12  # at which time per FLOP is shown
MIB = 2**20
OPS_HEADER = (
    "case", "pattern", "pass", "implementation", "ms (quartiles)", "ratio (quartiles)", "% of roofline", "peak MiB",
    "error",
)  # fmt: skip
REVISIONS_HEADER = (
    "operator", "case", "pattern", "dtype", "pass", f"{BASE}, ms (quartiles)", f"{TREE}, ms (quartiles)",
    f"ratio {BASE} / {TREE} (quartiles)", "difference", "verdict",
)  # fmt: skip
MODELS_HEADER = ("model", "workload", "implementation", "ms (quartiles)", "ratio (quartiles)", "peak MiB", "error")


@dataclass(frozen=True)
class TextTable:
    """A table of text; the first `num_label_columns` columns are labels, the others numbers."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    num_label_columns: int
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The table as Markdown, under its title as a heading."""
        rule = ["---"] * self.num_label_columns + ["--:"] * (len(self.header) - self.num_label_columns)
        lines = [f"| {' | '.join(cells)} |" for cells in (self.header, rule, *self._without_repeated_labels())]
        return "\n".join([f"### {self.title}", "", *lines, "", *(f"- {note}" for note in self.notes), ""])

    def print(self, console: Console) -> None:
        """Print the table to a terminal."""
        table = Table(*self.header, title=self.title, title_justify="left", box=SIMPLE)
        for index, column in enumerate(table.columns):
            column.overflow = "fold"
            column.justify = "left" if index < self.num_label_columns else "right"
        for row in self._without_repeated_labels():
            table.add_row(*row)
        console.print(table)
        for note in self.notes:
            console.print(note, markup=False, soft_wrap=True)

    def _without_repeated_labels(self) -> Iterator[tuple[str, ...]]:
        """The rows, with blanks in place of labels repeated from the previous row."""
        previous: tuple[str, ...] = ()
        last = self.num_label_columns - 1
        for row in self.rows:
            repeated = next((i for i in range(last) if row[: i + 1] != previous[: i + 1]), last)
            yield ("",) * repeated + row[repeated:]
            previous = row


def tables(record: dict[str, Any]) -> list[TextTable]:
    """The tables of a record of any kind."""
    by_kind = {
        "ops": ops_tables,
        "revisions": revisions_tables,
        "scaling": scaling_tables,
        "models": models_tables,
        "export": models_tables,
    }
    return by_kind[record["kind"]](record)


def render_page(records: dict[Path, dict[str, Any]], title: str) -> str:
    """A Markdown page of several records, each with its command, raw file, machine and versions."""
    parts = [f"# {title}", ""]
    for path, record in records.items():
        commit = (record["source"] or {}).get("commit", "an installed package")
        parts += [
            f"## {path.stem}",
            "",
            f"- command: `{typed_command(record)}`",
            f"- raw file: [{path.name}]({path.name}), {record['time']}, commit {commit}",
            f"- machine: {describe_machine(record)}",
            "",
        ]
        parts += [table.markdown() for table in tables(record)]
    return "\n".join(parts)


def typed_command(record: dict[str, Any]) -> str:
    """The command of a record as typed in a shell, with the environment variables that affect performance."""
    program, *args = record["command"]
    variables = [f"{name}={shlex.quote(value)} " for name, value in record["machine"].get("environment", {}).items()]
    command = shlex.join([*(["python", "-m", "attnzoo"] if program == "__main__.py" else [program]), *args])
    return "".join(variables) + command


def describe_machine(record: dict[str, Any]) -> str:
    """Machine and versions of a record in one line."""
    machine, versions = record["machine"], record["versions"]
    device = f"{machine['cpu']}, {machine['threads']} of {machine['cores']} threads"
    if machine["device"] != "cpu":
        device = f"{machine['device']} (host: {device})"
    commit = (record["source"] or {}).get("commit", "")[:9]
    versions = versions | {"attnzoo": versions.get("attnzoo") or f"source {commit}"}
    return f"{device}; " + ", ".join(f"{name} {v or 'not installed'}" for name, v in versions.items())


def ops_tables(record: dict[str, Any]) -> list[TextTable]:
    """One table per operator and dtype."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in record["rows"]:
        groups.setdefault((row["operator"], row["dtype"]), []).append(row)
    skipped_notes = [f"skipped, out of time budget: {name}" for name in record["skipped"]]
    result = []
    for (name, dtype), rows in groups.items():
        cells = [line for row in rows for line in (*_timed_rows(row), *_failed_rows(row))]
        notes = (*_size_notes(rows), *_unavailable_notes(rows), *_roofline_notes(record), *skipped_notes)
        result.append(TextTable(f"{name}, {dtype}", OPS_HEADER, cells, 4, notes))
    return result


def _timed_rows(row: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """One line per pass and implementation."""
    entries = {name: entry for name, entry in row["implementations"].items() if entry["state"] == "measured"}
    for pass_name, bound in row["roofline_seconds"].items():
        for name, entry in entries.items():
            samples = entry["seconds"][pass_name]
            ratio = DASH
            if OURS in entries and name != OURS:
                ratio = format_ratio(samples, entries[OURS]["seconds"][pass_name])
            percent, error = f"{100 * bound / median(samples):.0f}", f"{max(entry['errors'].values()):.0e}"
            numbers = (format_ms(samples), ratio, percent, format_mib(entry["peak_bytes"][pass_name]), error)
            yield (row["case"], row["pattern"], pass_name, name, *numbers)


def _failed_rows(row: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """One line per implementation that is wrong or raises, and therefore is not timed."""
    for name, entry in row["implementations"].items():
        if entry["state"] in ("mismatch", "failed"):
            message = f"{entry['state']}: {entry['reason']}"
            yield (row["case"], row["pattern"], DASH, name, message, DASH, DASH, DASH, DASH)


def revisions_tables(record: dict[str, Any]) -> list[TextTable]:
    """One table of all operators: a commit beside the working tree."""
    lines = []
    for row in record["rows"]:
        labels = tuple(row[key] for key in ("operator", "case", "pattern", "dtype", "pass"))
        if row["reason"]:
            lines.append((*labels, DASH, DASH, DASH, DASH, row["reason"]))
            continue
        base, tree = row["seconds"][BASE], row["seconds"][TREE]
        numbers = (format_ms(base), format_ms(tree), format_ratio(base, tree), f"{row['difference']:.0e}")
        lines.append((*labels, *numbers, verdict(row, record["threshold"])))
    base = record["base"]
    notes = (
        f"{BASE}: {base['revision']}, commit {base['commit'][:9]}",
        f"faster, slower: both quartiles of the ratio beyond {100 * record['threshold']:g} %",
        "difference: largest of output and gradients, relative to the largest element",
        *(f"skipped, out of time budget: {name}" for name in record["skipped"]),
    )
    return [TextTable(f"operators of {base['revision']} and of the {TREE}", REVISIONS_HEADER, lines, 5, notes)]


def format_ms(samples: Sequence[float]) -> str:
    """The median in milliseconds, with the quartiles."""
    low, middle, high = (f"{1000 * value:.3g}" for value in quartiles(list(samples)))
    return f"{middle} ({low}–{high})"


def format_ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """The median of their time over ours, round by round, with the quartiles."""
    low, middle, high = (f"{value:.2f}" for value in quartiles(time_ratios(list(theirs), list(ours))))
    return f"{middle} ({low}–{high})"


def format_mib(num_bytes: int | None) -> str:
    """Bytes in MiB, or a dash if unknown."""
    return DASH if num_bytes is None else f"{num_bytes / MIB:.1f}"


def _size_notes(rows: list[dict[str, Any]]) -> Iterator[str]:
    for case, sizes in {row["case"]: row["sizes"] for row in rows}.items():
        yield f"{case}: {sizes}"


def _unavailable_notes(rows: list[dict[str, Any]]) -> list[str]:
    notes = [
        f"{name} is {entry['state']}: {entry['reason']}"
        for row in rows
        for name, entry in row["implementations"].items()
        if entry["state"] in ("missing", "unavailable")
    ]
    return list(dict.fromkeys(notes))


def _roofline_notes(record: dict[str, Any]) -> Iterator[str]:
    peak_rates = record["roofline"]
    yield f"roofline, copy: {max(peak_rates['copy']) / 1e9:.1f} GB/s, read + write"
    for dtype, samples in peak_rates["macs"].items():
        yield f"roofline, matmul {dtype}: {max(samples) / 1e9:,.0f} GMAC/s"
    yield f"peak: {record['memory']}"


def scaling_tables(record: dict[str, Any]) -> list[TextTable]:
    """The fitted exponents, the crossings, time per FLOP, and one table per role and axis."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in record["rows"]:
        groups.setdefault((row["role"], row["axis"]), []).append(row)
    result = [_exponents_table(record), _crossings_table(record), _time_per_flop_table(record)]
    for (role, axis), rows in groups.items():
        rows.sort(key=lambda row: (row["attention"], row["pass"], row["x"]))
        skipped_notes = tuple(
            f"skipped: {skipped['attention']}, {skipped['pass']}, {axis} {skipped['x']}: {skipped['reason']}"
            for skipped in record["skipped"]
            if (skipped["role"], skipped["axis"]) == (role, axis)
        )
        cells = [_scaling_row(row) for row in rows]
        result.append(TextTable(f"{role}, against {axis}", _scaling_header(axis), cells, 2, skipped_notes))
    return [table for table in result if table.rows]


def _scaling_header(axis: str) -> tuple[str, ...]:
    varied = () if axis == "tokens" else (axis,)
    return ("attention", "pass", *varied, "tokens", "feature maps", "ms (quartiles)", "peak MiB")


def _scaling_row(row: dict[str, Any]) -> tuple[str, ...]:
    maps = " ".join(f"{h}x{w}" for h, w in row["shapes"])
    varied = () if row["axis"] == "tokens" else (str(row["x"]),)
    numbers = (f"{row['tokens']:,}", maps, format_ms(row["seconds"]), format_mib(row["peak_bytes"]))
    return (row["attention"], row["pass"], *varied, *numbers)


def _exponents_table(record: dict[str, Any]) -> TextTable:
    lines = [
        (
            *(fit[key] for key in ("role", "axis", "attention", "pass")),
            *(format_exponent(fit[cost]) for cost in ("flops", "time", "memory")),
        )
        for fit in record["fits"]
    ]
    header = ("role", "against", "attention", "pass", "of FLOPs", "of time", "of memory")
    notes = (
        "against tokens: fitted from 4k tokens on",
        "FLOPs: multiply-accumulates of the forward pass",
        f"peak: {record['memory']}",
    )
    return TextTable("fitted exponents", header, lines, 4, notes)


def _crossings_table(record: dict[str, Any]) -> TextTable:
    keys = ("role", "axis", "pass", "cost", "cheaper_below", "cheaper_above")
    lines = [(*(row[key] for key in keys), f"{row['x']:,.0f}") for row in record["crossings"]]
    header = ("role", "against", "pass", "cost", "cheaper below", "cheaper above", "crossing")
    notes = ("interpolated between measured sizes; pairs whose order is the same at both ends are left out",)
    return TextTable("crossings", header, lines, 6, notes)


def _time_per_flop_table(record: dict[str, Any]) -> TextTable:
    """Forward passes of each role near 4k tokens, the least time per FLOP first."""
    by_role: dict[str, dict[str, dict[str, Any]]] = {}
    for row in record["rows"]:
        if (row["axis"], row["pass"]) == ("tokens", "forward") and row["flops"]:
            rows = by_role.setdefault(row["role"], {})
            nearest = rows.setdefault(row["attention"], row)
            if abs(row["tokens"] - TOKENS_PER_FLOP) < abs(nearest["tokens"] - TOKENS_PER_FLOP):
                rows[row["attention"]] = row
    lines = []
    for role, rows in by_role.items():
        seconds = {name: median(row["seconds"]) / row["flops"] for name, row in rows.items()}
        for name in sorted(rows, key=lambda name: seconds[name]):
            ratio = f"{seconds[name] / seconds[CONVOLUTION]:.2f}" if CONVOLUTION in rows else DASH
            cells = (f"{rows[name]['tokens']:,}", f"{rows[name]['flops'] / 1e9:.3g}", format_ms(rows[name]["seconds"]))
            lines.append((role, name, *cells, f"{1e12 * seconds[name]:.3g}", ratio))
    header = ("role", "attention", "tokens", "GFLOPs", "ms (quartiles)", "ps per FLOP", f"of {CONVOLUTION}'s")
    notes = ("FLOPs: multiply-accumulates, of padding and masked keys too",)
    return TextTable("time per FLOP, forward", header, lines, 2, notes)


def format_exponent(fit: dict[str, Any] | None) -> str:
    """The exponent of a power law ± its standard error."""
    if fit is None:
        return DASH
    error = fit["exponent_stderr"]
    return f"{fit['exponent']:.2f}" + ("" if error is None or math.isnan(error) else f" ± {error:.2f}")


def models_tables(record: dict[str, Any]) -> list[TextTable]:
    """One table for all models."""
    lines = []
    for row in record["rows"]:
        labels, entries = (row["model"], row["workload"]), row["implementations"]
        ours = entries.get(OURS, {}).get("seconds")
        error = DASH if row["error"] is None else f"{row['error']:.0e}"
        for name, entry in entries.items():
            ratio = format_ratio(entry["seconds"], ours) if ours and name != OURS else DASH
            lines.append((*labels, name, format_ms(entry["seconds"]), ratio, format_mib(entry["peak_bytes"]), error))
        if row["reason"]:
            lines.append((*labels, DASH, row["reason"], DASH, DASH, DASH))
    return [TextTable("whole models", MODELS_HEADER, lines, 3, (f"peak: {record['memory']}",))]
