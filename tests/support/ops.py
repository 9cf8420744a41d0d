"""Inputs for tests of `ms_deform_attn`, and an independent oracle."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from attnzoo.ops.ms_deform_attn import reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
Arguments = tuple[Tensor, tuple[tuple[int, int], ...], Tensor, Tensor]


def arguments(
    shapes: Sequence[tuple[int, int]] = ((5, 7), (3, 4), (1, 2)),
    *,
    batch: int = 2,
    queries: int = 6,
    heads: int = 3,
    head_dim: int = 8,
    points: int = 4,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
) -> Arguments:
    """Random value, shapes, locations and weights; locations in and around the map, not at pixel centres.

    Gradients of locations are discontinuous at rows and columns of pixel centres, so no point is closer than a
    twentieth of a pixel to one.
    """
    generator = torch.Generator().manual_seed(seed)

    def rand(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    tokens = sum(h * w for h, w in shapes)
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float64)[:, None]
    centers = rand(batch, queries, heads, len(shapes), points, 2) * 1.6 - 0.3
    pixels = centers * sizes - 0.5
    fraction = 0.05 + 0.9 * rand(*pixels.shape)
    locations = (pixels.floor() + fraction + 0.5) / sizes
    value = rand(batch, tokens, heads, head_dim) - 0.5
    weights = rand(batch, queries, heads, len(shapes), points)
    value, locations, weights = (t.to(device, dtype) for t in (value, locations, weights))
    return value, tuple(shapes), locations, weights


def to_device(device: str, args: Iterable[Any]) -> list[Any]:
    """Move the tensors among the arguments to a device."""
    return [t.to(device) if isinstance(t, Tensor) else t for t in args]


def oracle(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Deformable DETR (arXiv:2010.04159), equation 3, in Python loops."""
    batch, _, heads, head_dim = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    output = torch.zeros(batch, queries, heads, head_dim, dtype=torch.float64)
    values, points_xy, point_weights = value.double(), locations.double().tolist(), weights.double().tolist()
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                start = 0
                for level, (h, w) in enumerate(shapes):
                    for p in range(points):
                        x, y = points_xy[b][q][m][level][p]
                        if not (math.isfinite(x) and math.isfinite(y)):
                            continue
                        column, row = x * w - 0.5, y * h - 0.5
                        for j in range(w):
                            for i in range(h):
                                # Bilinear weight of a pixel: a tent of half-width 1.
                                tent = max(0.0, 1 - abs(column - j)) * max(0.0, 1 - abs(row - i))
                                if tent > 0:
                                    pixel = values[b, start + i * w + j, m]
                                    output[b, q, m] += point_weights[b][q][m][level][p] * tent * pixel
                    start += h * w
    return output.flatten(2)


class Fused(NamedTuple):
    """Arguments of the fused operator; references are points (B, Q, L, 2) or boxes (B, Q, L, 4)."""

    value: Tensor
    shapes: tuple[tuple[int, int], ...]
    references: Tensor
    offsets: Tensor
    logits: Tensor

    def on(self, device: str) -> "Fused":
        return Fused(*to_device(device, self))

    def double(self) -> "Fused":
        return Fused(*(t.double() if isinstance(t, Tensor) else t for t in self))

    def locations(self) -> Tensor:
        """Sampling locations (B, Q, M, L, P, 2) (Deformable DETR, arXiv:2010.04159, section 4.1 and appendix A.4)."""
        references = self.references[:, :, None, :, None]
        if references.shape[-1] == 4:
            points = self.offsets.shape[4]
            return references[..., :2] + self.offsets / points * references[..., 2:] * 0.5
        sizes = self.offsets.new_tensor([(w, h) for h, w in self.shapes])
        return references + self.offsets / sizes[:, None]


def fused_arguments(
    box: bool,
    shapes: Sequence[tuple[int, int]] = ((5, 7), (3, 4), (1, 2)),
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **sizes: Any,
) -> Fused:
    """As `arguments`, with references, offsets and logits for its locations."""
    value, shapes, locations, weights = arguments(shapes, seed=seed, **sizes)
    batch, queries, _, levels, points, _ = locations.shape
    generator = torch.Generator().manual_seed(seed)
    references = torch.rand(batch, queries, levels, 4 if box else 2, generator=generator, dtype=torch.float64)
    from_reference = locations - references[:, :, None, :, None, :2]
    if box:
        offsets = from_reference * points / (0.5 * (references[:, :, None, :, None, 2:] + 0.2))
        references[..., 2:] += 0.2
    else:
        offsets = from_reference * locations.new_tensor([(w, h) for h, w in shapes])[:, None]
    float_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return Fused(
        value.to(dtype),
        shapes,
        references.to(float_dtype),
        offsets.to(float_dtype),
        (4 * weights).to(float_dtype),
    )


def fused_reference(args: Fused) -> Tensor:
    """The fused operator by the unfused reference."""
    weights = args.logits.flatten(-2).softmax(-1).view(args.logits.shape)
    return reference.ms_deform_attn(args.value, args.shapes, args.locations(), weights)
