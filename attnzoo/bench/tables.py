"""Records of benchmarks as tables, for a terminal and for docs/results."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from attnzoo.bench.operators.peers import OURS
from attnzoo.bench.records import Rows, machine
from attnzoo.bench.timing import quartiles, ratios

NONE = "–"
MIB = 2**20
OPS_HEADER = (
    "case", "pattern", "pass", "implementation", "ms (quartiles)", "ratio (quartiles)", "of ceiling", "peak MiB",
    "error",
)  # fmt: skip
_ABSENT = ("missing", "unavailable")


def tables(record: dict[str, Any]) -> list[Rows]:
    """The tables of a record of any kind."""
    return {"ops": ops, "scaling": scaling, "models": whole_models}[record["kind"]](record)


def page(records: dict[Path, dict[str, Any]], title: str) -> str:
    """A Markdown page of several records, each under its machine, versions, command and raw file."""
    parts = [f"# {title}", ""]
    for path, record in records.items():
        commit = (record["source"] or {}).get("commit", "an installed package")
        parts += [
            f"## {path.stem}",
            "",
            f"- command: `{command(record)}`",
            f"- raw file: [{path.name}]({path.name}), {record['time']}, commit {commit}",
            f"- machine: {machine(record)}",
            "",
        ]
        parts += [table.markdown() for table in tables(record)]
    return "\n".join(parts)


def command(record: dict[str, Any]) -> str:
    """How the record was made, as it would be typed, with the variables that tune what it runs on."""
    program, *rest = record["command"]
    tuned = [f"{name}={shlex.quote(value)} " for name, value in record["machine"].get("environment", {}).items()]
    typed = shlex.join([*(["python", "-m", "attnzoo"] if program == "__main__.py" else [program]), *rest])
    return "".join(tuned) + typed


def ops(record: dict[str, Any]) -> list[Rows]:
    """One table per operation and dtype."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in record["rows"]:
        groups.setdefault((row["operation"], row["dtype"]), []).append(row)
    left = [f"not measured, out of time: {name}" for name in record["left_out"]]
    shown = []
    for (name, dtype), rows in groups.items():
        cells = [line for row in rows for line in (*_timed(row), *_refused(row))]
        notes = (*_sizes(rows), *_absent(rows), *_ceilings(record), *left)
        shown.append(Rows(f"{name}, {dtype}", OPS_HEADER, cells, 4, notes))
    return shown


def _timed(row: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """A line per pass and implementation."""
    entries = {name: entry for name, entry in row["implementations"].items() if entry["state"] == "measured"}
    for label, bound in row["bound_seconds"].items():
        for name, entry in entries.items():
            samples = entry["seconds"][label]
            compared = NONE
            if OURS in entries and name != OURS:
                compared = ratio(samples, entries[OURS]["seconds"][label])
            share, error = f"{bound / median(samples):.0%}", f"{max(entry['errors'].values()):.0e}"
            numbers = (milliseconds(samples), compared, share, mebibytes(entry["peak_bytes"][label]), error)
            yield (row["case"], row["pattern"], label, name, *numbers)


def _refused(row: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """A line for each implementation that computes something else or fails, and so is not timed."""
    for name, entry in row["implementations"].items():
        if entry["state"] in ("disagrees", "failed"):
            why = f"{entry['state']}: {entry['reason']}"
            yield (row["case"], row["pattern"], NONE, name, why, NONE, NONE, NONE, NONE)


def milliseconds(samples: Sequence[float]) -> str:
    """The median, with the quartiles."""
    low, middle, high = (f"{1000 * value:.3g}" for value in quartiles(list(samples)))
    return f"{middle} ({low}–{high})"


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """The median of their time over ours, round by round, with the quartiles."""
    low, middle, high = (f"{value:.2f}" for value in quartiles(ratios(list(theirs), list(ours))))
    return f"{middle} ({low}–{high})"


def mebibytes(count: int | None) -> str:
    """A peak, or a dash where it was not measured."""
    return NONE if count is None else f"{count / MIB:.1f}"


def _sizes(rows: list[dict[str, Any]]) -> Iterator[str]:
    for case, sizes in {row["case"]: row["sizes"] for row in rows}.items():
        yield f"{case}: {sizes}"


def _absent(rows: list[dict[str, Any]]) -> list[str]:
    notes = [
        f"{name} is {entry['state']}: {entry['reason']}"
        for row in rows
        for name, entry in row["implementations"].items()
        if entry["state"] in _ABSENT
    ]
    return list(dict.fromkeys(notes))


def _ceilings(record: dict[str, Any]) -> Iterator[str]:
    measured = record["ceilings"]
    yield f"ceiling, copy: {max(measured['copy']) / 1e9:.1f} GB/s, read and written both counted"
    for dtype, samples in measured["macs"].items():
        yield f"ceiling, matrix product {dtype}: {max(samples) / 1e9:,.0f} GMAC/s"
    yield f"peak: {record['memory']}"


def scaling(record: dict[str, Any]) -> list[Rows]:
    """The fitted exponents, and one table per axis."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in record["rows"]:
        groups.setdefault(row["axis"], []).append(row)
    shown = [_exponents(record)]
    for axis, rows in groups.items():
        rows.sort(key=lambda row: (row["attention"], row["pass"], row["x"]))
        notes = tuple(
            f"left out: {left['attention']}, {left['pass']}, {axis} {left['x']}: {left['reason']}"
            for left in record["left_out"]
            if left["axis"] == axis
        )
        shown.append(Rows(f"against {axis}", _scaling_header(axis), [_scaling_cells(row) for row in rows], 2, notes))
    return shown


def _scaling_header(axis: str) -> tuple[str, ...]:
    varied = () if axis == "tokens" else (axis,)
    return ("attention", "pass", *varied, "tokens", "maps", "ms (quartiles)", "peak MiB")


def _scaling_cells(row: dict[str, Any]) -> tuple[str, ...]:
    maps = " ".join(f"{h}x{w}" for h, w in row["shapes"])
    varied = () if row["axis"] == "tokens" else (str(row["x"]),)
    numbers = (f"{row['tokens']:,}", maps, milliseconds(row["seconds"]), mebibytes(row["peak_bytes"]))
    return (row["attention"], row["pass"], *varied, *numbers)


def _exponents(record: dict[str, Any]) -> Rows:
    lines = [
        (fit["axis"], fit["attention"], fit["pass"], _exponent(fit["time"]), _exponent(fit["memory"]))
        for fit in record["fits"]
    ]
    notes = ("against tokens, sizes from 4k on are fitted", f"peak: {record['memory']}")
    return Rows("fitted exponents", ("against", "attention", "pass", "of time", "of memory"), lines, 3, notes)


def _exponent(law: dict[str, Any] | None) -> str:
    if law is None:
        return NONE
    return f"{law['exponent']:.2f}" + (f" ± {law['spread']:.2f}" if law["spread"] is not None else "")


def whole_models(record: dict[str, Any]) -> list[Rows]:
    """One table for all models."""
    lines = []
    for row in record["rows"]:
        entries = row["implementations"]
        ours = entries.get(OURS, {}).get("seconds")
        error = NONE if row["error"] is None else f"{row['error']:.0e}"
        for name, entry in entries.items():
            if entry["seconds"]:
                compared = ratio(entry["seconds"], ours) if ours and name != OURS else NONE
                numbers = (milliseconds(entry["seconds"]), compared, mebibytes(entry["peak_bytes"]))
                lines.append((row["model"], row["work"], name, *numbers, error))
        if row["reason"]:
            lines.append((row["model"], row["work"], NONE, row["reason"], NONE, NONE, NONE))
    header = ("model", "work", "implementation", "ms (quartiles)", "ratio (quartiles)", "peak MiB", "error")
    return [Rows("whole models", header, lines, 3, (f"peak: {record['memory']}",))]
