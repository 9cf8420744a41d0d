"""A comparison for notebooks: one row per run."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, overload

from attnzoo.errors import UserError
from attnzoo.report.compare import varying_options
from attnzoo.report.records import read_records
from attnzoo.rundir.metrics import METRICS


class Results:
    """The runs of a sweep, one row each: variant, its options, seed, state, hours, and the final metrics by name.

    A sequence of dicts; `columns` are their keys, `results["AP"]` is a column as a list, `to_pandas()` a DataFrame.
    """

    def __init__(self, rows: list[dict[str, Any]]):
        self.rows = rows
        self.columns = list(dict.fromkeys(key for row in rows for key in row))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, key: str) -> list[Any]: ...

    def __getitem__(self, key: int | str) -> dict[str, Any] | list[Any]:
        """A row, or the values of a column, None where a run has none. Raises KeyError for an unknown column."""
        return self._column(key) if isinstance(key, str) else self.rows[key]

    def _column(self, name: str) -> list[Any]:
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
    options = varying_options([record.config for record in records], [record.entry.variant for record in records])
    return Results(
        [
            {"variant": record.entry.variant_name or record.config.name}
            | {name: value for name, value in labels.items() if name not in ("variant", "seed")}
            | {
                "seed": record.config.seed,
                "state": record.status["state"],
                "hours": record.hours,
            }
            | {
                names.get(key, key.removeprefix("val/")): value
                for key, value in record.final.items()
                if key in names or key.startswith("val/")
            }
            for record, labels in zip(records, options, strict=True)
        ]
    )


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
