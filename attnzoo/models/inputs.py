"""Inputs of a model by its kind, for dry runs and measurements."""

import torch
from torch import Tensor, nn

from attnzoo.models.probe import model as probe


def random_inputs(
    model: nn.Module,
    batch_size: int,
    size: tuple[int, int],
    device: torch.device | str,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, ...]:
    """What `model` takes, with random values: images (B, 3, h, w), or maps of `size` (h, w) and queries of a probe."""
    if isinstance(model, probe.ProbeModel):
        return probe.random_inputs(batch_size, size, device, generator)
    return (torch.randn(batch_size, 3, *size, generator=generator).to(device),)
