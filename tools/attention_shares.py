"""Where the decoders of docs/results attend over the training, for tools/results.py."""

from collections.abc import Callable, Iterable
from pathlib import Path

from attnzoo.report.records import RunRecord, read_records
from attnzoo.report.statistics import mean_ci95

SIZES = ("small", "medium", "large")
LAST = 1  # number of the last of two decoder layers

HEAD = """# Where decoders attend

Of the cross-attention of the last decoder layer on eight validation images, after each evaluation; mean of the seeds,
with half the width of its 95 % interval (t). Objects are those that the matcher assigns to a prediction.
[What the values are](../tensorboard.md). Exploratory: no verdict is drawn from this page.
"""
INSIDE = "**Share of the attention inside the predicted box**, by training step:"
ENTROPY = "**Entropy of the weights**, 1 where all keys weigh the same, by training step:"
LEVELS = "**Share of the finest level**, by the size of the object, at the last step:"


def page(folders: Iterable[Path]) -> str:
    """The page, of results of detectors whose variants differ in the decoder."""
    lines = [HEAD]
    for folder in folders:
        groups: dict[str, list[RunRecord]] = {}
        for record in read_records([folder])[0]:
            groups.setdefault(record.entry.variant or record.entry.variant_name, []).append(record)
        steps = sorted({int(row["step"]) for runs in groups.values() for row in runs[0].metrics if _is_attention(row)})
        if not steps:  # made before the values were recorded
            continue
        lines += [f"## {folder.name}", "", f"[Raw]({folder.name}/results.json)", ""]
        for title, key in ((INSIDE, f"inside_box/decoder.{LAST}"), (ENTROPY, f"entropy/decoder.{LAST}")):
            lines += _table(title, groups, [(f"{step:,}", _at(key, step)) for step in steps])
        keys = [(size, f"level_share/decoder.{LAST}/{size}/level0") for size in SIZES]
        lines += _table(LEVELS, groups, [(size, _at(key, steps[-1])) for size, key in keys])
    return "\n".join(lines)


def _is_attention(row: dict[str, float]) -> bool:
    return any(key.startswith("entropy/") for key in row)


def _at(key: str, step: int) -> Callable[[RunRecord], float | None]:
    def value(record: RunRecord) -> float | None:
        return next((row[key] for row in record.metrics if row["step"] == step and key in row), None)

    return value


def _table(
    title: str, groups: dict[str, list[RunRecord]], columns: list[tuple[str, Callable[[RunRecord], float | None]]]
) -> list[str]:
    """Of the variants that have any of the values."""
    lines = [title, "", f"| variant | {' | '.join(name for name, _ in columns)} |", f"| --- |{' --: |' * len(columns)}"]
    for variant, runs in groups.items():
        cells = [_cell([found for run in runs if (found := value(run)) is not None]) for _, value in columns]
        if any(cells):
            lines.append(f"| {variant} | {' | '.join(cells)} |")
    return [*lines, ""]


def _cell(values: list[float]) -> str:
    estimate = mean_ci95(values)
    if estimate is None:
        return ""
    return f"{estimate.mean:.3f}" + ("" if estimate.ci95 is None else f" ± {estimate.ci95:.3f}")
