"""`bench models`: whole models against other implementations with the same weights."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attnzoo.bench import accuracy, memory, records
from attnzoo.bench.models.base import BenchModel, Outputs, Shape
from attnzoo.bench.models.classifiers import CLASSIFICATION
from attnzoo.bench.models.detectors import DETECTION
from attnzoo.bench.models.graphs import CUDA_GRAPH, GraphedModel
from attnzoo.bench.operators.base import OURS
from attnzoo.bench.select import select_names
from attnzoo.bench.timing import time_interleaved

TASKS = {name: task for task in (DETECTION, CLASSIFICATION) for name in task.models}
DEFAULT_MODELS = ("detr_r50", "deformable_detr_r50", "dat_tiny")
FORWARD, TRAINING = "forward", "training step"
TOLERANCE = 1e-4  # of the largest element, after a whole network in float32
LEARNING_RATE = 1e-6  # small, so that the weights hardly change however many steps are timed


def run(
    device: torch.device,
    names: Sequence[str] = DEFAULT_MODELS,
    *,
    seconds: float = 5.0,
    tiny: bool = False,
    forward: Shape | None = None,
    training: Shape | None = None,
    on_progress: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """The record of forward passes on `forward` and training steps on `training`, both (B, H, W).

    Outputs, or losses and gradients, are compared first; on a mismatch nothing is timed. On a GPU our models run in
    CUDA graphs too. Without transformers only our
    detectors are timed. `on_progress` receives the record after every row. Raises UserError for an unknown model.
    """
    record = records.header("models", device, ["attnzoo", "transformers"])
    record |= {"memory": memory.METHODS[device.type], "rows": []}
    for name in select_names("model", names, TASKS):
        task = TASKS[name]
        models, missing = task.build_models(name, tiny, device)
        if device.type == "cuda":
            models[CUDA_GRAPH] = GraphedModel(models[OURS])
        for mode, shape in ((FORWARD, forward or task.forward), (TRAINING, training or task.training)):
            images = torch.randn(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(0)).to(device)
            targets = task.make_targets(shape[0], device)
            row: dict[str, Any] = {"model": name, "workload": f"{mode}, {shape[0]} x {shape[1]}x{shape[2]}"}
            record["rows"].append(row | _measure(models, mode, images, targets, seconds, missing))
            on_progress(record)
    return record


def _measure(
    models: dict[str, BenchModel], mode: str, images: Tensor, targets: Any, seconds: float, missing: str | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"error": None, "reason": missing, "implementations": {}}
    if missing is None:
        outputs = {
            name: _predict(model, images) if mode == FORWARD else _train_outputs(model, images, targets)
            for name, model in models.items()
        }
        row["error"], row["reason"] = compare_outputs(outputs)
        if row["reason"]:
            return row
    calls = {name: _make_call(model, mode, images, targets) for name, model in models.items()}
    for name, samples in time_interleaved(calls, images.device, seconds).items():
        # a graph keeps its memory between calls
        peak_bytes = None if name == CUDA_GRAPH else memory.peak_memory(calls[name], images.device)
        row["implementations"][name] = {"seconds": samples, "peak_bytes": peak_bytes}
    return row


def failures(record: dict[str, Any]) -> list[str]:
    """Models whose outputs, or losses and gradients, differ between implementations."""
    return [
        f"{row['model']}, {row['workload']}: {row['reason']}" for row in record["rows"] if not row["implementations"]
    ]


def compare_outputs(outputs: dict[str, Outputs]) -> tuple[float, str | None]:
    """Largest relative difference from our outputs, and a message if it exceeds the tolerance."""
    ours = outputs[OURS]
    errors = {
        f"{label} of {name}": accuracy.max_relative_error(theirs[label].double(), ours[label].double())
        for name, theirs in outputs.items()
        if name != OURS
        for label in ours
    }
    worst = max(errors, key=lambda label: errors[label])
    if errors[worst] <= TOLERANCE:
        return errors[worst], None
    return errors[worst], f"mismatch: {worst}: relative error {errors[worst]:.1e}, allowed {TOLERANCE:.0e}"


def _predict(model: BenchModel, images: Tensor) -> Outputs:
    model.model.eval()
    with torch.no_grad():
        return model.predict(images)


def _train_outputs(model: BenchModel, images: Tensor, targets: Any) -> Outputs:
    """The loss, the norm of all gradients, and the number of trained parameters."""
    model.model.train()
    model.model.zero_grad()
    loss = model.loss(images, targets)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.model.parameters() if p.grad is not None])
    model.model.zero_grad()
    trained = sum(p.numel() for p in model.model.parameters() if p.requires_grad)
    return {"loss": loss.detach(), "gradient norm": norm, "number of trained parameters": torch.tensor(trained)}


def _make_call(model: BenchModel, mode: str, images: Tensor, targets: Any) -> Callable[[], object]:
    return (lambda: _predict(model, images)) if mode == FORWARD else make_train_step(model, images, targets)


def make_train_step(model: BenchModel, images: Tensor, targets: Any) -> Callable[[], object]:
    """A repeatable training step that starts and ends without gradients."""
    trained = [p for p in model.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)

    def train() -> None:
        model.model.train()
        model.loss(images, targets).backward()
        optimizer.step()
        optimizer.zero_grad()  # within the call, so that the peak memory includes the gradients

    return train
