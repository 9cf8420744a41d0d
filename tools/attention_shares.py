"""Where decoders and encoders of docs/results attend over the training, for tools/results.py."""

from collections.abc import Callable, Iterable
from pathlib import Path

from attnzoo.report.records import RunRecord, read_records
from attnzoo.report.statistics import mean_ci95

SIZES = ("small", "medium", "large")
LAST = 1  # number of the last of two decoder layers

HEAD = """# Where decoders and encoders attend

On eight validation images, after each evaluation; mean of the seeds, with half the width of its 95 % interval (t).
Where the decoder varies, of the cross-attention of its last layer, for objects that the matcher assigns to a
prediction; where the encoder varies, of its only layer.
[What the values are](../tensorboard.md). Exploratory: no verdict is drawn from this page.
"""
INSIDE = "**Share of the attention inside the predicted box**, by training step:"
ENTROPY = "**Entropy of the weights**, 1 where all keys weigh the same, by training step:"
ENTROPY_ENCODER = (
    "**Entropy of the weights in the encoder**, 1 where all keys weigh the same, as in a convolution, by training step:"
)
LEVELS = "**Share of the finest level**, by the size of the object, at the last step:"


def page(decoders: Iterable[Path], encoders: Iterable[Path] = ()) -> str:
    """The page, of results of detectors whose variants differ in the decoder or in the encoder."""
    lines = [HEAD]
    for folder in decoders:
        if (runs := _recorded_runs(folder)) is None:
            continue
        groups, steps = runs
        lines += _heading(folder)
        for title, key in ((INSIDE, f"inside_box/decoder.{LAST}"), (ENTROPY, f"entropy/decoder.{LAST}")):
            lines += _table(title, groups, [(f"{step:,}", _at(key, step)) for step in steps])
        keys = [(size, f"level_share/decoder.{LAST}/{size}/level0") for size in SIZES]
        lines += _table(LEVELS, groups, [(size, _at(key, steps[-1])) for size, key in keys])
    for folder in encoders:
        if (runs := _recorded_runs(folder)) is not None:
            groups, steps = runs
            columns = [(f"{step:,}", _at("entropy/encoder.0", step)) for step in steps]
            lines += [*_heading(folder), *_table(ENTROPY_ENCODER, groups, columns)]
    return "\n".join(lines)


def _recorded_runs(folder: Path) -> tuple[dict[str, list[RunRecord]], list[int]] | None:
    """Runs by variant and the steps with values of attention; None if they were made before these were recorded."""
    groups: dict[str, list[RunRecord]] = {}
    for record in read_records([folder])[0]:
        groups.setdefault(record.entry.variant or record.entry.variant_name, []).append(record)
    steps = sorted({int(row["step"]) for runs in groups.values() for row in runs[0].metrics if _is_attention(row)})
    return (groups, steps) if steps else None


def _heading(folder: Path) -> list[str]:
    return [f"## {folder.name}", "", f"[Raw]({folder.name}/results.json)", ""]


def _is_attention(row: dict[str, float]) -> bool:
    return any(key.startswith("entropy/") for key in row)


def _at(key: str, step: int) -> Callable[[RunRecord], float | None]:
    def value(record: RunRecord) -> float | None:
        return next((row[key] for row in record.metrics if row["step"] == step and key in row), None)

    return value


def _table(
    title: str, groups: dict[str, list[RunRecord]], columns: list[tuple[str, Callable[[RunRecord], float | None]]]
) -> list[str]:
    """Of the variants that have any of the values; nothing if none has."""
    rows = []
    for variant, runs in groups.items():
        cells = [_cell([found for run in runs if (found := value(run)) is not None]) for _, value in columns]
        if any(cells):
            rows.append(f"| {variant} | {' | '.join(cells)} |")
    if not rows:
        return []
    head = [f"| variant | {' | '.join(name for name, _ in columns)} |", f"| --- |{' --: |' * len(columns)}"]
    return [title, "", *head, *rows, ""]


def _cell(values: list[float]) -> str:
    estimate = mean_ci95(values)
    if estimate is None:
        return ""
    return f"{estimate.mean:.3f}" + ("" if estimate.ci95 is None else f" ± {estimate.ci95:.3f}")
