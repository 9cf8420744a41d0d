"""Records of benchmarks as tables, for a terminal and for docs/results."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from attnzoo.inspect.bench.peers import OURS
from attnzoo.inspect.bench.record import Rows, machine
from attnzoo.inspect.bench.sampling import quartiles, ratios

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
            f"- command: `{shlex.join(record['command'])}`",
            f"- raw file: [{path.name}]({path.name}), {record['time']}, commit {commit}",
            f"- machine: {machine(record)}",
            "",
        ]
        parts += [table.markdown() for table in tables(record)]
    return "\n".join(parts)


def ops(record: dict[str, Any]) -> list[Rows]:
    """One table per operation and dtype."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in record["rows"]:
        groups.setdefault((row["operation"], row["dtype"]), []).append(row)
    left = [f"not measured, out of time: {name}" for name in record["left_out"]]
    return [
        Rows(
            f"{name}, {dtype}", OPS_HEADER, [cells for row in rows for cells in _cells(row)], 4,
            (*_sizes(rows), *_absent(rows), *_ceilings(record), *left),
        )  # fmt: skip
        for (name, dtype), rows in groups.items()
    ]


def _cells(row: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """A line per pass and implementation; one line for an implementation that was not timed."""
    entries = row["implementations"]
    place = (row["case"], row["pattern"])
    for label, bound in row["bound_seconds"].items():
        ours = entries.get(OURS, {}).get("seconds", {}).get(label)
        for name, entry in entries.items():
            if entry["state"] == "measured":
                samples = entry["seconds"][label]
                yield (
                    *place, label, name, milliseconds(samples),
                    ratio(samples, ours) if ours and name != OURS else NONE,
                    f"{bound / median(samples):.0%}", mebibytes(entry["peak_bytes"][label]),
                    f"{max(entry['errors'].values()):.0e}",
                )  # fmt: skip
    for name, entry in entries.items():
        if entry["state"] in ("disagrees", "failed"):
            yield (*place, NONE, name, f"{entry['state']}: {entry['reason']}", NONE, NONE, NONE, NONE)


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
