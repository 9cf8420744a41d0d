"""What runs measure and comparisons show, named once. Imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A scalar of metrics.jsonl: its key there, its name in CSV files and status lines, and its title in tables.

    `form` is the format of a cell. Scores (`val/...`) are of one `task` and carry intervals.
    """

    key: str
    name: str
    title: str
    format_spec: str
    task: str | None = None

    @property
    def is_score(self) -> bool:
        return self.task is not None

    @property
    def is_optional(self) -> bool:
        """Whether a comparison without any value leaves the column out: speed is not measured by every run."""
        return self.key.startswith("speed/")


METRICS = (
    Metric("val/AP", "AP", "AP", ".3f", "detection"),
    Metric("val/AP50", "AP50", "AP50", ".3f", "detection"),
    Metric("val/top1", "top1", "top-1", ".3f", "classification"),
    Metric("val/top5", "top5", "top-5", ".3f", "classification"),
    Metric("cost/params", "params", "params", ",.0f"),
    Metric("cost/gflops", "gflops", "GFLOPs", ".4g"),
    Metric("cost/ms", "ms", "ms / image", ".2f"),
    Metric("speed/images_per_second", "images_per_second", "train images / s", ".4g"),
    Metric("speed/peak_mib", "peak_mib", "peak MiB", ",.0f"),
)

STATUS = {"train/loss": "loss"} | {metric.key: metric.name for metric in METRICS if metric.is_score}
