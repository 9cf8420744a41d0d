"""The metrics of runs: their keys, names and formats. Imports no heavy packages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A scalar of metrics.jsonl and TensorBoard, where it is `key`; `title` and `format_spec` are for tables."""

    key: str
    title: str
    format_spec: str = ".3f"

    @property
    def name(self) -> str:
        """What status.json, `attnzoo status --json` and CSV files call it: the key without its group."""
        return self.key.partition("/")[2]

    @property
    def is_validation(self) -> bool:
        return self.key.startswith("val/")


# The validation metrics of each task; higher is better. The first is the primary one: `attnzoo status` shows it, and
# it selects the best checkpoint.
TASK_METRICS = {
    "detection": (Metric("val/AP", "AP"), Metric("val/AP50", "AP50")),
    "classification": (Metric("val/top1", "top-1"), Metric("val/top5", "top-5")),
    "probe": (Metric("val/accuracy", "accuracy"), Metric("val/chance", "chance")),
}
# Without the times of metrics.jsonl, which depend on what else the machine does and cannot be compared between runs.
COST_METRICS = (
    Metric("cost/params", "params", ",.0f"),
    Metric("cost/gflops", "GFLOPs", ".4g"),
)
# Not measured by every run.
MEMORY_METRICS = (Metric("speed/peak_mib", "peak MiB", ",.0f"),)

PRIMARY_METRICS = {task: metrics[0] for task, metrics in TASK_METRICS.items()}
METRICS = tuple(dict.fromkeys([*chain.from_iterable(TASK_METRICS.values()), *COST_METRICS, *MEMORY_METRICS]))
# Those in status.json: key -> name.
STATUS = {"train/loss": "loss"} | {metric.key: metric.name for metric in METRICS if metric.is_validation}


# Of what attentions do on validation images: `inference.training`.
ATTENTION = ("entropy/", "inside_box/", "level_share/")


def is_validation(row: Mapping[str, float]) -> bool:
    """Whether a row of metrics.jsonl is from an evaluation."""
    return any(key.startswith("val/") for key in row)


def final_values(status: Mapping[str, Any], rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The last value of each metric, and the last `step`, if the run with this status is done; {} if it is not.

    Without the validation metrics of its last step a run counts as not done.
    """
    if status["state"] != "done" or not is_final(rows, status.get("steps", 0)):
        return {}
    return {key: value for row in rows for key, value in row.items()}


def is_final(rows: Sequence[Mapping[str, float]], steps: int) -> bool:
    """Whether `rows` end with the evaluation after the last of `steps` optimiser steps."""
    return bool(rows) and rows[-1]["step"] >= steps and is_validation(rows[-1])
