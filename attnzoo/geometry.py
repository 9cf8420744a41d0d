"""Coordinate conventions, and the containers for feature maps and queries.

Coordinates are normalised to [0, 1] of the *valid* (unpadded) image, x before y. The centre of pixel i of
n is at (i + ½) / n, which is what `align_corners=False` means; outside the map there are zeros. Each
query has one reference point in these coordinates, and an attention maps it to the padded map of level l
by multiplying with `Layout.valid_ratios[:, l]`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from attnzoo.errors import UserError


class Role(StrEnum):
    """Where an attention is used in a model."""

    ENCODER = "encoder"  # attn(memory.as_queries(), memory): every token of a pyramid is a query
    DECODER = "decoder"  # attn(objects, memory): unordered object queries attend to a pyramid
    STAGE = "stage"  # one level of a hierarchical ViT: as ENCODER, with a single level


@dataclass(frozen=True)
class Slot:
    """Where the model uses an attention: the arguments that the model, not the user, passes to it.

    `dim` channels are split over `heads`; `levels` feature maps are attended; `layer` is the 0-based index
    in the stack; `map_sizes` holds (h, w) per level if the maps have a fixed size.

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
    """Positions and padding of the S = Σ h·w tokens of a pyramid. Built once per batch, shared by all layers.

    - `spatial_shapes`: (h, w) per level, Python ints: no device synchronisation, static for torch.compile
    - `padding_mask`: (B, S) bool, True where a token is padding, or None; the valid area is a top-left rectangle
    - `valid_ratios`: (B, L, 2) float32, valid fraction (x, y) of each map, in (0, 1]
    - `centers`: (B, S, 2) float32, centre of each token in coordinates of the valid image; above 1 on padding
    - `sizes_wh`: (L, 2) float32, (w, h) of each map: `spatial_shapes` on the device
    """

    spatial_shapes: tuple[tuple[int, int], ...]
    padding_mask: Tensor | None
    valid_ratios: Tensor
    centers: Tensor
    sizes_wh: Tensor

    @classmethod
    def from_masks(cls, masks: Sequence[Tensor]) -> "Layout":
        """The layout of maps with padding: one (B, h, w) bool mask per level, True where padded."""
        shapes = tuple((m.shape[-2], m.shape[-1]) for m in masks)  # int(…) would make torch.export's sizes constants
        # The first row and column give the size of the valid rectangle (Deformable DETR, get_valid_ratio).
        valid = torch.stack([torch.stack([(~m[:, 0]).sum(-1), (~m[:, :, 0]).sum(-1)], -1) for m in masks], 1)
        sizes = _sizes_wh(shapes, valid.device)
        ratios = valid.clamp(min=1) / sizes
        padding = torch.cat([m.flatten(1) for m in masks], 1)
        return cls(shapes, padding, ratios, _centers(shapes, ratios), sizes)

    @classmethod
    def unpadded(
        cls, shapes: Sequence[tuple[int, int]], batch_size: int, device: torch.device | str = "cpu"
    ) -> "Layout":
        """The layout of maps of the given (h, w) without padding."""
        shapes = tuple((h, w) for h, w in shapes)
        ratios = torch.ones(1, len(shapes), 2, device=device)  # the same in all images
        centers = _centers(shapes, ratios).expand(batch_size, -1, -1)
        return cls(shapes, None, ratios.expand(batch_size, -1, -1), centers, _sizes_wh(shapes, ratios.device))

    @property
    def num_levels(self) -> int:
        return len(self.spatial_shapes)

    @property
    def num_tokens(self) -> int:
        """S, the number of tokens of all levels."""
        return sum(self.tokens_per_level)

    @property
    def tokens_per_level(self) -> tuple[int, ...]:
        return tuple(h * w for h, w in self.spatial_shapes)

    @property
    def valid_sizes(self) -> Tensor:
        """(B, L, 2) float32, (w, h) of the valid area of each map, at least 1: whole numbers."""
        return (self.valid_ratios * self.sizes_wh).round()

    @property
    def padded_centers(self) -> Tensor:
        """(B, S, 2), centre of each token in [0, 1] of the padded map of its level."""
        ratios = self.valid_ratios.split(1, 1)
        per_token = [r.expand(-1, n, -1) for r, n in zip(ratios, self.tokens_per_level, strict=True)]
        return self.centers * torch.cat(per_token, 1)

    def zero_padding(self, x: Tensor) -> Tensor:
        """x (B, S, C) with zeros at padding."""
        return x if self.padding_mask is None else x.masked_fill(self.padding_mask[..., None], 0)

    def level(self, index: int) -> "Layout":
        """The layout of one level."""
        mask = None if self.padding_mask is None else self.padding_mask.split(self.tokens_per_level, 1)[index]
        centers = self.centers.split(self.tokens_per_level, 1)[index]
        shape, level = self.spatial_shapes[index], slice(index, index + 1)
        return Layout((shape,), mask, self.valid_ratios[:, level], centers, self.sizes_wh[level])


@dataclass(frozen=True, eq=False)
class Queries:
    """Query tokens (B, Q, C) with optional reference points, position embeddings and layout.

    - `reference_points`: (B, Q, 2) points (x, y) or (B, Q, 4) boxes (cx, cy, w, h), normalised to the valid image
    - `pos`: (B, Q, C) position embeddings, added to queries, never to values
    - `layout`: of queries that are the tokens of a pyramid; None for object queries
    """

    tokens: Tensor
    reference_points: Tensor | None = None
    pos: Tensor | None = None
    layout: Layout | None = None

    def with_pos_embed(self) -> Tensor:
        """Tokens plus position embeddings, (B, Q, C)."""
        return self.tokens if self.pos is None else self.tokens + self.pos


@dataclass(frozen=True, eq=False)
class Pyramid:
    """Attended features: one or several feature maps, levels concatenated.

    - `tokens`: (B, S, C)
    - `pos`: (B, S, C) position embeddings, added to queries and keys, never to values
    """

    tokens: Tensor
    layout: Layout
    pos: Tensor | None = None

    def with_pos_embed(self) -> Tensor:
        """Tokens plus position embeddings, (B, S, C)."""
        return self.tokens if self.pos is None else self.tokens + self.pos

    def as_queries(self) -> Queries:
        """The tokens as queries, for self-attention; the reference point of each is its own centre."""
        return Queries(self.tokens, self.layout.centers, self.pos, self.layout)

    def level(self, index: int) -> "Pyramid":
        """One level."""
        lengths = self.layout.tokens_per_level
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


def _sizes_wh(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """(w, h) of all levels as a tensor (L, 2), created on the device to avoid a host-to-device synchronisation."""
    sizes = [torch.full((1,), size, device=device, dtype=torch.float32) for h, w in shapes for size in (w, h)]
    return torch.cat(sizes).unflatten(0, (-1, 2))


# Registered as pytrees, for torch.export and activation checkpointing.
for _container in (Layout, Queries, Pyramid):
    torch.export.register_dataclass(_container)
