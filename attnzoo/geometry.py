"""Where tokens lie: the one page on coordinates.

Coordinates are normalised to [0, 1] of the *valid* (unpadded) image, x before y. The centre of pixel i of
n is at (i + ½) / n, which is what `align_corners=False` means; outside the map there are zeros. Each
query's reference is given once, in these coordinates, and an attention maps it to the padded map of level
l by multiplying with `Layout.valid_ratios[:, l]`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from attnzoo.errors import UserError


class Role(StrEnum):
    """Where an attention stands in a model."""

    ENCODER = "encoder"  # attn(memory.as_queries(), memory): every token of a pyramid is a query
    DECODER = "decoder"  # attn(objects, memory): unordered object queries look at a pyramid
    STAGE = "stage"  # one level of a hierarchical ViT: as ENCODER, with a single level


@dataclass(frozen=True)
class Slot:
    """What the model knows about the place of an attention; the rest are the user's options.

    `dim` channels are split over `heads`; `levels` feature maps are attended; `layer` counts from 0 in
    its stack; `map_sizes` holds (h, w) per level where the maps have a fixed size.

    Raises UserError unless heads divides dim, all counts are positive and `map_sizes` fits `levels`.
    """

    dim: int
    heads: int
    levels: int = 1
    role: Role = Role.ENCODER
    layer: int = 0
    map_sizes: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        if min(self.dim, self.heads, self.levels) < 1:
            raise UserError(f"dim={self.dim}, heads={self.heads} and levels={self.levels} must be at least 1")
        if self.dim % self.heads:
            raise UserError(f"dim={self.dim} is not divisible by heads={self.heads}")
        if self.role == Role.STAGE and self.levels != 1:
            raise UserError(f"a stage has one level, not {self.levels}")
        if self.map_sizes is not None and len(self.map_sizes) != self.levels:
            raise UserError(f"map_sizes has {len(self.map_sizes)} entries for levels={self.levels}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the S = Σ h·w tokens of a pyramid lie: made once per batch, shared by all layers.

    - `shapes`: (h, w) per level, Python ints, so that nothing waits for a device and graphs compile
    - `padding`: (B, S) bool, True where a token is padding, or None; the valid area is a top-left rectangle
    - `valid_ratios`: (B, L, 2) float32, valid part of each map in (0, 1], x then y
    - `centers`: (B, S, 2) float32, each token's centre; beyond 1 on padding
    - `sizes`: (L, 2) float32, width and height of each map: `shapes` on the device
    """

    shapes: tuple[tuple[int, int], ...]
    padding: Tensor | None
    valid_ratios: Tensor
    centers: Tensor
    sizes: Tensor

    @classmethod
    def from_masks(cls, masks: Sequence[Tensor]) -> "Layout":
        """The layout of maps with padding: one (B, h, w) bool mask per level, True where padded."""
        shapes = tuple((int(m.shape[-2]), int(m.shape[-1])) for m in masks)
        # The first row and column tell the valid rectangle (Deformable DETR, get_valid_ratio).
        valid = torch.stack([torch.stack([(~m[:, 0]).sum(-1), (~m[:, :, 0]).sum(-1)], -1) for m in masks], 1)
        sizes = _sizes(shapes, valid.device)
        ratios = valid.clamp(min=1) / sizes
        padding = torch.cat([m.flatten(1) for m in masks], 1)
        return cls(shapes, padding, ratios, _centers(shapes, ratios), sizes)

    @classmethod
    def unpadded(cls, shapes: Sequence[tuple[int, int]], batch: int, device: torch.device | str = "cpu") -> "Layout":
        """The layout of maps of the given (h, w) without padding."""
        shapes = tuple((int(h), int(w)) for h, w in shapes)
        ratios = torch.ones(batch, len(shapes), 2, device=device)
        return cls(shapes, None, ratios, _centers(shapes, ratios), _sizes(shapes, ratios.device))

    @property
    def levels(self) -> int:
        return len(self.shapes)

    @property
    def tokens(self) -> int:
        """S, the number of tokens of all levels."""
        return sum(h * w for h, w in self.shapes)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens per level."""
        return tuple(h * w for h, w in self.shapes)

    def level(self, index: int) -> "Layout":
        """The layout of one level alone."""
        padding = None if self.padding is None else self.padding.split(self.lengths, 1)[index]
        centers = self.centers.split(self.lengths, 1)[index]
        here = slice(index, index + 1)
        return Layout((self.shapes[index],), padding, self.valid_ratios[:, here], centers, self.sizes[here])


@dataclass(frozen=True, eq=False)
class Queries:
    """What asks: tokens (B, Q, C) with optional references, positions and layout.

    - `refs`: (B, Q, 2) points (x, y) or (B, Q, 4) boxes (cx, cy, w, h), normalised to the valid image
    - `pos`: (B, Q, C), added to queries, never to values
    - `layout`: where the queries lie if they are the tokens of a pyramid; None for object queries
    """

    tokens: Tensor
    refs: Tensor | None = None
    pos: Tensor | None = None
    layout: Layout | None = None

    def positioned(self) -> Tensor:
        """Tokens with their positions added, (B, Q, C)."""
        return self.tokens if self.pos is None else self.tokens + self.pos


@dataclass(frozen=True, eq=False)
class Pyramid:
    """What is attended: one or several feature maps, levels concatenated.

    - `tokens`: (B, S, C)
    - `pos`: (B, S, C), added to queries and keys, never to values
    """

    tokens: Tensor
    layout: Layout
    pos: Tensor | None = None

    def positioned(self) -> Tensor:
        """Tokens with their positions added, (B, S, C)."""
        return self.tokens if self.pos is None else self.tokens + self.pos

    def as_queries(self) -> Queries:
        """The same tokens asking: their references are their own centres."""
        return Queries(self.tokens, self.layout.centers, self.pos, self.layout)

    def level(self, index: int) -> "Pyramid":
        """One level alone."""
        lengths = self.layout.lengths
        pos = None if self.pos is None else self.pos.split(lengths, 1)[index]
        return Pyramid(self.tokens.split(lengths, 1)[index], self.layout.level(index), pos)


def _centers(shapes: tuple[tuple[int, int], ...], valid_ratios: Tensor) -> Tensor:
    """Pixel centres (B, S, 2) of all levels, normalised to the valid part of each level."""
    device = valid_ratios.device
    levels = []
    for index, (h, w) in enumerate(shapes):
        y = (torch.arange(h, device=device, dtype=torch.float32) + 0.5) / h
        x = (torch.arange(w, device=device, dtype=torch.float32) + 0.5) / w
        grid = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1).flatten(0, 1)
        levels.append(grid / valid_ratios[:, index, None])
    return torch.cat(levels, 1)


def _sizes(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """(w, h) of all levels as a tensor (L, 2), filled on the device: a copy from the host would wait for it."""
    sides = [torch.full((1,), side, device=device, dtype=torch.float32) for h, w in shapes for side in (w, h)]
    return torch.cat(sides).unflatten(0, (-1, 2))


# Layouts, pyramids and queries pass through torch.export and checkpointing as the tensors they hold.
for _kind in (Layout, Queries, Pyramid):
    torch.export.register_dataclass(_kind)
