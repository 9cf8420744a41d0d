"""What a finished run has written, without training it."""

import json

from attnzoo.rundir.folder import RunFolder


def finish(run: RunFolder, steps: int = 2, metric: str = "val/AP", value: float = 0.5) -> None:
    """Write the metrics and the status of a run of detection that is done, or of another task by its `metric`."""
    rows = [{"step": 1, "train/loss": 1.0}, {"step": steps, "train/loss": 0.5}, {"step": steps, metric: value}]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.write_status(state="done", step=steps, steps=steps, **{metric.removeprefix("val/"): value})
