"""Multi-scale deformable attention under test: sizes of published models, and where their points lie."""

from dataclasses import dataclass

import torch
from torch import Tensor

from attnzoo.bench.operators.base import HALF, Operation, differentiate
from attnzoo.geometry import Layout
from attnzoo.ops.ms_deform_attn import reference

OFFSET_PIXELS = 2.0
"""Standard deviation of the offsets of the local pattern, in pixels of each level, as trained models sample."""
KNOT_MARGIN = 0.02
"""No point is nearer to a row or column of pixel centres, where derivatives by location jump, in pixels."""


@dataclass(frozen=True)
class Case:
    """Maps `shapes` (h, w) per level; `queries` is None where every token asks, as in an encoder."""

    name: str
    shapes: tuple[tuple[int, int], ...]
    batch: int = 1
    queries: int | None = None
    heads: int = 8
    head_dim: int = 32
    points: int = 4

    @property
    def tokens(self) -> int:
        return sum(h * w for h, w in self.shapes)

    @property
    def asking(self) -> int:
        return self.tokens if self.queries is None else self.queries

    def __str__(self) -> str:
        levels = ", ".join(f"{h}x{w}" for h, w in self.shapes)
        return (
            f"B {self.batch}, Q {self.asking:,}, S {self.tokens:,} ({levels}), "
            f"M {self.heads}, D {self.head_dim}, P {self.points}"
        )


def pyramid(height: int, width: int, strides: tuple[int, ...] = (8, 16, 32, 64)) -> tuple[tuple[int, int], ...]:
    """Map sizes of an image; every stride rounds up, as padded convolutions do."""
    return tuple((-(-height // stride), -(-width // stride)) for stride in strides)


BATCHES = (1, 2, 4)
CASES = [
    *(Case(f"decoder-b{batch}", pyramid(512, 512), batch=batch, queries=300) for batch in BATCHES),
    *(
        Case(f"encoder-{height}x{width}-b{batch}", pyramid(height, width), batch=batch)
        for height, width in ((512, 512), (800, 1066), (800, 1333))
        for batch in BATCHES
    ),
]


def inputs(case: Case, pattern: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Value (B, S, M, D), locations (B, Q, M, L, P, 2) and weights (B, Q, M, L, P).

    Pattern "local": offsets around each query's own reference, which is its pixel in an encoder and uniform over the
    image in a decoder. "uniform": anywhere in the image. Locations are float32 beside half-precision values.
    """
    g = torch.Generator().manual_seed(0)
    value = torch.randn(case.batch, case.tokens, case.heads, case.head_dim, generator=g)
    locations = _locations(case, pattern, g)
    logits = torch.randn(case.batch, case.asking, case.heads, len(case.shapes) * case.points, generator=g)
    weights = logits.softmax(-1).unflatten(-1, (len(case.shapes), case.points))
    coordinates = torch.float32 if dtype in HALF else dtype
    return value.to(device, dtype), locations.to(device, coordinates), weights.to(device, dtype)


def _locations(case: Case, pattern: str, g: torch.Generator) -> Tensor:
    size = (case.batch, case.asking, case.heads, len(case.shapes), case.points, 2)
    extent = torch.tensor([(w, h) for h, w in case.shapes], dtype=torch.float64)[:, None]
    if pattern == "uniform":
        pixels = torch.rand(size, generator=g, dtype=torch.float64) * extent - 0.5
    else:
        centers = Layout.unpadded(case.shapes, 1).centers
        if case.queries is not None:
            centers = torch.rand(case.batch, case.queries, 2, generator=g)
        offsets = OFFSET_PIXELS * torch.randn(size, generator=g, dtype=torch.float64)
        pixels = centers[:, :, None, None, None].double() * extent - 0.5 + offsets
    whole = pixels.floor()
    return (whole + KNOT_MARGIN + (1 - 2 * KNOT_MARGIN) * (pixels - whole) + 0.5) / extent


def output(case: Case) -> tuple[int, ...]:
    """(B, Q, M·D)."""
    return case.batch, case.asking, case.heads * case.head_dim


def authority(case: Case, tensors: tuple[Tensor, ...], slope: Tensor) -> list[Tensor]:
    """Output and gradients of the reference in float64, one image at a time to spare memory."""

    def plain(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return reference.ms_deform_attn(value, case.shapes, locations, weights)

    images = [
        differentiate(plain, tuple(t[i : i + 1].double() for t in tensors), slope[i : i + 1].double())
        for i in range(case.batch)
    ]
    return [torch.cat(parts) for parts in zip(*images, strict=True)]


def macs(case: Case) -> int:
    """Four corners a sample, whose coefficients hold the attention weight already."""
    return 4 * case.batch * case.asking * case.heads * len(case.shapes) * case.points * case.head_dim


MS_DEFORM_ATTN = Operation(
    "ms_deform_attn",
    cases={case.name: case for case in CASES},
    brief=("decoder-b1", "decoder-b4", "encoder-512x512-b1", "encoder-800x1066-b1"),
    seldom=("encoder-512x512-b2", "encoder-512x512-b4"),
    patterns=("local", "uniform"),
    tensors=("value", "sampling_locations", "attention_weights"),
    inputs=inputs,
    output=output,
    authority=authority,
    macs=macs,
)
