"""`bench models`: whole models beside other implementations of them, with the same weights."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attnzoo.bench import accuracy, memory, records
from attnzoo.bench.models.base import Entrant, Outputs, Shape
from attnzoo.bench.models.classifiers import CLASSIFIERS
from attnzoo.bench.models.detectors import DETECTORS
from attnzoo.bench.operators.peers import OURS
from attnzoo.bench.select import pick
from attnzoo.bench.timing import interleave

MODELS = {name: kind for kind in (DETECTORS, CLASSIFIERS) for name in kind.models}
USUAL = ("detr_r50", "deformable_detr_r50", "dat_tiny")
TOLERANCE = 1e-4  # of the largest element, after a whole network in float32
LEARNING_RATE = 1e-6  # the weights stay what they were, whatever number of steps is timed


def run(
    device: torch.device,
    names: Sequence[str] = USUAL,
    *,
    seconds: float = 5.0,
    tiny: bool = False,
    forward: Shape | None = None,
    training: Shape | None = None,
    progress: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """The record of forward passes on `forward` and training steps on `training`, both (B, H, W).

    Outputs, or losses and gradients, are compared first: where they disagree nothing is timed. Without transformers
    our detectors are timed alone. `progress` is called with the record as it grows. Raises UserError for an unknown
    model.
    """
    result = records.header("models", device, ["attnzoo", "transformers"])
    result |= {"memory": memory.METHODS[device.type], "rows": []}
    for name in pick("model", names, MODELS):
        kind = MODELS[name]
        found, missing = kind.entrants(name, tiny, device)
        for work, shape in (("forward", forward or kind.forward), ("training step", training or kind.training)):
            images = torch.randn(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(0)).to(device)
            targets = kind.targets(shape[0], device)
            row: dict[str, Any] = {"model": name, "work": f"{work}, {shape[0]} x {shape[1]}x{shape[2]}"}
            result["rows"].append(row | _measure(found, work, images, targets, seconds, missing))
            progress(result)
    return result


def _measure(
    found: dict[str, Entrant], work: str, images: Tensor, targets: Any, seconds: float, missing: str | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"error": None, "reason": missing, "implementations": {}}
    if missing is None:
        outputs = {
            name: _predict(entrant, images) if work == "forward" else _learn(entrant, images, targets)
            for name, entrant in found.items()
        }
        row["error"], row["reason"] = compare(outputs)
        if row["reason"]:
            return row
    calls = {name: _call(entrant, work, images, targets) for name, entrant in found.items()}
    for name, samples in interleave(calls, images.device, seconds).items():
        row["implementations"][name] = {"seconds": samples, "peak_bytes": memory.peak(calls[name], images.device)}
    return row


def faults(record: dict[str, Any]) -> list[str]:
    """Models whose outputs, or losses and gradients, differ from those of the others."""
    return [f"{row['model']}, {row['work']}: {row['reason']}" for row in record["rows"] if not row["implementations"]]


def compare(outputs: dict[str, Outputs]) -> tuple[float, str | None]:
    """Largest distance of any output from ours, and in words which one is too far; None where none is."""
    ours = outputs[OURS]
    distances = {
        f"{label} of {name}": accuracy.distance(theirs[label].double(), ours[label].double())
        for name, theirs in outputs.items()
        if name != OURS
        for label in ours
    }
    worst = max(distances, key=lambda label: distances[label])
    if distances[worst] <= TOLERANCE:
        return distances[worst], None
    return distances[worst], f"disagrees: {worst} is off by {distances[worst]:.1e}, allowed {TOLERANCE:.0e}"


def _predict(entrant: Entrant, images: Tensor) -> Outputs:
    entrant.model.eval()
    with torch.no_grad():
        return entrant.predict(images)


def _learn(entrant: Entrant, images: Tensor, targets: Any) -> Outputs:
    """The loss, the norm of all gradients, and how many parameters are trained."""
    entrant.model.train()
    entrant.model.zero_grad()
    loss = entrant.loss(images, targets)
    loss.backward()
    gradients = [p.grad for p in entrant.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    entrant.model.zero_grad()
    trained = sum(p.numel() for p in entrant.model.parameters() if p.requires_grad)
    return {"loss": loss.detach(), "gradient norm": norm, "number of trained parameters": torch.tensor(trained)}


def _call(entrant: Entrant, work: str, images: Tensor, targets: Any) -> Callable[[], object]:
    return (lambda: _predict(entrant, images)) if work == "forward" else step(entrant, images, targets)


def step(entrant: Entrant, images: Tensor, targets: Any) -> Callable[[], object]:
    """One training step of an entrant on a batch, again and again; each begins and ends without gradients."""
    trained = [p for p in entrant.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)

    def train() -> None:
        entrant.model.train()
        entrant.loss(images, targets).backward()
        optimizer.step()
        optimizer.zero_grad()  # before the call ends: a peak counts what is there beyond what was there before

    return train
