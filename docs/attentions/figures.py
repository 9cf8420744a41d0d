"""Draw what each attention attends to, for the pages next to this file: python docs/attentions/figures.py."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from attnzoo import attention
from attnzoo.geometry import Layout, Pyramid, Role, Slot

MAP_SIZE, DIM, HEADS = 14, 32, 4
QUERIES = [(3, 4), (9, 10)]  # row, column
FIGURES = Path(__file__).parent / "figures"
# Options that show what the page describes.
ATTENTIONS: dict[str, dict[str, Any]] = {
    "dense": {},
    "ms_deform": {},
    "dat": {"stride": 2, "kernel": 5, "groups": 2},
    "window": {"window": 7, "shift": 3},
    "neighborhood": {"kernel": 7},
    "dcn": {},
    "conv": {},
}


def record_attention(name: str, options: dict[str, Any]) -> dict[str, Tensor]:
    """Record an attention with random weights on random tokens."""
    torch.manual_seed(0)
    module = attention.build(name, Slot(DIM, HEADS, 1, Role.STAGE, 0, ((MAP_SIZE, MAP_SIZE),)), **options).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    memory = Pyramid(torch.randn(1, MAP_SIZE * MAP_SIZE, DIM), Layout.unpadded([(MAP_SIZE, MAP_SIZE)], 1))
    with attention.record(module) as recording, torch.no_grad():
        module(memory.as_queries(), memory)
    return recording[""][0]


def attended_points(name: str, entry: dict[str, Tensor], query: int) -> tuple[Tensor, Tensor]:
    """Points (N, 2) in pixels and their weights (N,), of the first head."""
    weights = entry["weights"][0]
    if name == "dense":
        points, weight = Layout.unpadded([(MAP_SIZE, MAP_SIZE)], 1).centers[0], weights[0, query]
    elif name == "ms_deform":
        points, weight = entry["locations"][0, query, 0, 0], weights[query, 0, 0]
    elif name == "dat":
        points, weight = entry["locations"][0, :, 0], weights[0, query]
    else:
        points, weight = entry["locations"][0, query], weights[query, 0]
    return points * MAP_SIZE - 0.5, weight


def draw(axes: Axes, name: str, entry: dict[str, Tensor], row: int, column: int) -> None:
    points, weight = attended_points(name, entry, row * MAP_SIZE + column)
    nonzero = weight > 0
    sizes = (160 * weight[nonzero] / weight.max()).clamp(min=2)
    axes.scatter(*points[nonzero].T, s=sizes, color="tab:orange", alpha=0.8)
    axes.plot(column, row, marker="*", markersize=14, color="tab:blue")
    axes.set(xlim=(-0.5, MAP_SIZE - 0.5), ylim=(MAP_SIZE - 0.5, -0.5), aspect="equal")
    axes.set_xticks([i - 0.5 for i in range(MAP_SIZE + 1)], labels=[])
    axes.set_yticks([i - 0.5 for i in range(MAP_SIZE + 1)], labels=[])
    axes.tick_params(length=0)
    axes.grid(color="0.85", linewidth=0.6)
    axes.set_axisbelow(True)


def main() -> None:
    """One figure per attention: two queries (stars) and the weights of the first head (circle sizes)."""
    for name, options in ATTENTIONS.items():
        figure, panels = plt.subplots(1, 2, figsize=(6.4, 3.2), layout="constrained")
        entry = record_attention(name, options)
        for axes, (row, column) in zip(panels, QUERIES, strict=True):
            draw(axes, name, entry, row, column)
        figure.savefig(FIGURES / f"{name}.png", dpi=80)
        plt.close(figure)


if __name__ == "__main__":
    main()
