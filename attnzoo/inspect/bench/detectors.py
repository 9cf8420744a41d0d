"""`bench models`: whole detectors beside those of transformers, with the same weights."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attnzoo.inspect.bench import agreement, memory, record
from attnzoo.inspect.bench.detector_pairs import MODELS, PUBLISHED, Entrant, Size, entrants
from attnzoo.inspect.bench.peers import OURS
from attnzoo.inspect.bench.sampling import interleave
from attnzoo.inspect.bench.select import pick
from attnzoo.models.detr.matcher import Objects

USUAL = ("detr_r50", "deformable_detr_r50")
FORWARD, TRAINING = (1, 800, 1066), (2, 256, 256)
OBJECTS = 8  # per training image
TOLERANCE = 1e-4  # of the largest element, after a whole network in float32
LEARNING_RATE = 1e-6  # the weights stay what they were, whatever number of steps is timed
Outputs = dict[str, Tensor]


def run(
    device: torch.device,
    names: Sequence[str] = USUAL,
    *,
    seconds: float = 5.0,
    size: Size = PUBLISHED,
    forward: tuple[int, int, int] = FORWARD,
    training: tuple[int, int, int] = TRAINING,
    progress: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """The record of forward passes on `forward` and training steps on `training`, both (B, H, W).

    Outputs, or losses and gradients, are compared first: where they disagree nothing is timed. Without transformers
    ours is timed alone. `progress` is called with the record as it grows. Raises UserError for an unknown model.
    """
    result = record.header("models", device, ["attnzoo", "transformers"])
    result |= {"memory": memory.METHODS[device.type], "rows": []}
    for name in pick("model", names, MODELS):
        found, missing = entrants(name, size, device)
        for work, shape in (("forward", forward), ("training step", training)):
            row: dict[str, Any] = {"model": name, "work": f"{work}, {shape[0]} x {shape[1]}x{shape[2]}"}
            result["rows"].append(row | _measure(found, work, shape, device, seconds, missing))
            progress(result)
    return result


def _measure(
    found: dict[str, Entrant], work: str, shape: tuple[int, int, int], device: torch.device, seconds: float,
    missing: str | None,
) -> dict[str, Any]:  # fmt: skip
    images = torch.randn(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(0)).to(device)
    targets = _targets(shape[0], device)
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
    for name, samples in interleave(calls, device, seconds).items():
        row["implementations"][name] = {"seconds": samples, "peak_bytes": memory.peak(calls[name], device)}
    return row


def faults(record: dict[str, Any]) -> list[str]:
    """Models whose outputs, or losses and gradients, differ from those of transformers."""
    return [f"{row['model']}, {row['work']}: {row['reason']}" for row in record["rows"] if not row["implementations"]]


def compare(outputs: dict[str, Outputs]) -> tuple[float, str | None]:
    """Largest distance of any output from ours, and in words which one is too far; None where none is."""
    ours = outputs[OURS]
    distances = {
        f"{label} of {name}": agreement.distance(theirs[label].double(), ours[label].double())
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
        logits, boxes = entrant.predict(images)
    return {"logits": logits, "boxes": boxes}


def _learn(entrant: Entrant, images: Tensor, targets: Sequence[Objects]) -> Outputs:
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


def _call(entrant: Entrant, work: str, images: Tensor, targets: Sequence[Objects]) -> Callable[[], object]:
    if work == "forward":
        return lambda: _predict(entrant, images)
    trained = [p for p in entrant.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)

    def step() -> None:
        entrant.model.train()
        optimizer.zero_grad()
        entrant.loss(images, targets).backward()
        optimizer.step()

    return step


def _targets(batch: int, device: torch.device) -> list[Objects]:
    g = torch.Generator().manual_seed(1)
    return [
        {
            "labels": torch.randint(20, (OBJECTS,), generator=g).to(device),
            "boxes": (0.2 + 0.6 * torch.rand(OBJECTS, 4, generator=g)).to(device),
        }
        for _ in range(batch)
    ]
