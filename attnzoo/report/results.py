"""A comparison for notebooks: one row per run."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from attnzoo.errors import UserError
from attnzoo.report.records import read_records
from attnzoo.rundir.metrics import METRICS


class Results:
    """The runs of a sweep, one row each: variant, seed, state, hours, and the final metrics by name.

    A sequence of dicts; `columns` are their keys, `column(name)` gives one as a list, `to_pandas()` a DataFrame.
    """

    def __init__(self, rows: list[dict[str, Any]]):
        self.rows = rows
        self.columns = list(dict.fromkeys(key for row in rows for key in row))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def column(self, name: str) -> list[Any]:
        """The values of a column, None where a run has none. Raises KeyError for a name that is not in `columns`."""
        if name not in self.columns:
            raise KeyError(f"{name!r}: expected one of {', '.join(self.columns)}")
        return [row.get(name) for row in self.rows]

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame. Raises ImportError without pandas."""
        import pandas

        return pandas.DataFrame(self.rows, columns=self.columns)

    def __repr__(self) -> str:
        cells = [self.columns, *([_cell(row.get(name)) for name in self.columns] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join("  ".join(map(str.rjust, line, widths)) for line in cells)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        rows = ["".join(f"<td>{escape(_cell(row.get(name)))}</td>" for name in self.columns) for row in self.rows]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def read_results(*folders: str | Path) -> Results:
    """The runs in `folders`, of runs or with a results.json. Raises UserError for a folder without runs."""
    records, left_out = read_records(map(Path, folders))
    if not records:
        raise UserError(left_out[0])
    names = {metric.key: metric.name for metric in METRICS}
    return Results(
        [
            {
                "variant": record.entry.variant_name or record.config.name,
                "seed": record.config.seed,
                "state": record.status["state"],
                "hours": record.hours,
            }
            | {name: record.final[key] for key, name in names.items() if key in record.final}
            for record in records
        ]
    )


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
