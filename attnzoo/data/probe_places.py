"""Probes that ask about places around the reference point of a query."""

import math
from abc import abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from attnzoo.data.probes import (
    CONTENT,
    PROBES,
    ProbeBatch,
    ProbeSpec,
    check,
    draw_among,
    draw_pixels,
    enough_pixels,
    make_batch,
    read_pixels,
    smooth_fields,
)

DIRECTIONS = CONTENT  # evenly spread; the query names one
LABELS = 6  # fields; the label of a place is the largest


@dataclass(frozen=True, kw_only=True)
class PlacesSpec(ProbeSpec):
    """Smooth fields, and for each of 8 contents the places around the reference that a query asks about.

    `smoothness`: standard deviation, in pixels, of the blur that makes the fields.
    """

    num_fields: ClassVar[int] = LABELS

    smoothness: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check("smoothness", self.smoothness, 0 < self.smoothness <= self.size, f"above 0, to size = {self.size}")
        keys = [key.name for key in fields(self) if key.name not in ("val_maps", "smoothness")]
        settings = ", ".join(f"{key} = {getattr(self, key)}" for key in keys)
        enough_pixels(int(self.valid.any(1).sum()), settings)

    @property
    @abstractmethod
    def offsets(self) -> Tensor:
        """Offsets (8, P, 2) in whole pixels, (x, y), of the P places that each content asks about."""

    @cached_property
    def valid(self) -> Tensor:
        """Whether all places of a reference pixel and a content lie on the map: (size², 8) bool."""
        y, x = torch.meshgrid(torch.arange(self.size), torch.arange(self.size), indexing="ij")
        places = torch.stack([x, y], -1).reshape(-1, 1, 1, 2) + self.offsets
        return ((places >= 0) & (places < self.size)).flatten(2).all(-1)

    @abstractmethod
    def label(self, fields: Tensor, pixels: Tensor, places: Tensor) -> Tensor:
        """Labels (B, Q, A) from fields (B, C, h, w), reference pixels (B, Q, 2) and places (B, Q, P, 2)."""

    def generate(self, maps: int, generator: torch.Generator) -> ProbeBatch:
        fields = self.draw_fields(maps, generator)
        pixels = draw_pixels(generator, self.valid.any(1).expand(maps, -1), self.size)
        asked = draw_among(generator, self.valid[pixels[..., 1] * self.size + pixels[..., 0]])
        places = pixels[:, :, None] + self.offsets[asked]
        return make_batch(fields, pixels, asked, self.label(fields, pixels, places))

    def draw_fields(self, maps: int, generator: torch.Generator) -> Tensor:
        """Random fields (B, C, size, size)."""
        return smooth_fields(generator, maps, self.num_fields, self.size, self.smoothness)


@dataclass(frozen=True, kw_only=True)
class RingSpec(PlacesSpec):
    """Several places around the reference.

    `places`: 1, 2, 4 or 8, evenly spread from the direction that the query names; `distance`: in pixels.
    """

    places: int
    distance: float

    def _check(self) -> None:
        check("places", self.places, self.places in (1, 2, 4, 8), "1, 2, 4 or 8")
        check("distance", self.distance, 1 <= self.distance < self.size, f"from 1 to below size = {self.size}")

    @property
    def offsets(self) -> Tensor:
        steps = torch.arange(self.places) * (DIRECTIONS // self.places)
        angles = (torch.arange(DIRECTIONS)[:, None] + steps) % DIRECTIONS * (2 * math.pi / DIRECTIONS)
        return (self.distance * torch.stack([angles.cos(), angles.sin()], -1)).round().long()


@PROBES.register("read")
@dataclass(frozen=True, kw_only=True)
class Read(RingSpec):
    """Says the label of each of several places around the reference, told apart.

    `places`: 1, 2, 4 or 8, evenly spread from the direction that the query names; `distance`: in pixels.
    """

    capability: ClassVar[str] = "read places, told apart"
    difficulty: ClassVar[str] = "places"

    places: int = 2
    distance: float = 3.0

    @property
    def answers(self) -> int:
        return self.places

    @property
    def classes(self) -> int:
        return LABELS

    def label(self, fields: Tensor, pixels: Tensor, places: Tensor) -> Tensor:
        return read_pixels(fields, places).argmax(-1)


@PROBES.register("reach")
@dataclass(frozen=True, kw_only=True)
class Reach(Read):
    """Says the label of one place far from the reference.

    `distance`: in pixels, in the direction that the query names; `places`: as in `read`.
    """

    capability: ClassVar[str] = "read far away"
    difficulty: ClassVar[str] = "distance"

    places: int = 1
    distance: float = 6.0


@PROBES.register("count")
@dataclass(frozen=True, kw_only=True)
class Count(RingSpec):
    """Says at how many of several places around the reference a map of patches is 1; elsewhere it is -1.

    `places`: 1, 2, 4 or 8, evenly spread from the direction that the query names; `distance`: in pixels.
    """

    capability: ClassVar[str] = "sum over places"
    difficulty: ClassVar[str] = "places"
    num_fields: ClassVar[int] = 1

    places: int = 8
    distance: float = 4.0

    @property
    def classes(self) -> int:
        return self.places + 1

    def draw_fields(self, maps: int, generator: torch.Generator) -> Tensor:
        return (super().draw_fields(maps, generator) > 0) * 2.0 - 1

    def label(self, fields: Tensor, pixels: Tensor, places: Tensor) -> Tensor:
        return (read_pixels(fields, places) > 0).sum(-2)


@PROBES.register("shape")
@dataclass(frozen=True, kw_only=True)
class Shape(PlacesSpec):
    """Says which field is largest on average along a line through the reference.

    `length`: odd, in pixels. The query names one of 8 orientations of the line, over 180 degrees.
    """

    capability: ClassVar[str] = "average along a rotated line"
    difficulty: ClassVar[str] = "length"

    length: int = 9

    def _check(self) -> None:
        valid = self.length % 2 == 1 and 1 <= self.length < self.size
        check("length", self.length, valid, f"odd, from 1 to below size = {self.size}")

    @property
    def classes(self) -> int:
        return LABELS

    @property
    def offsets(self) -> Tensor:
        angles = torch.arange(CONTENT)[:, None] * (math.pi / CONTENT)
        along = torch.arange(self.length) - self.length // 2
        return torch.stack([along * angles.cos(), along * angles.sin()], -1).round().long()

    def label(self, fields: Tensor, pixels: Tensor, places: Tensor) -> Tensor:
        return read_pixels(fields, places).mean(-2).argmax(-1, keepdim=True)


@PROBES.register("scale")
@dataclass(frozen=True, kw_only=True)
class Scale(PlacesSpec):
    """Says which field is largest on average over a square around the reference, whose size the map tells.

    `scales`: 1 to 3, the number of sizes: sides of 1, 3 and 9 pixels, equally likely. A further field tells which, by
    its value at the reference. The content of the query says nothing.
    """

    capability: ClassVar[str] = "unknown scale"
    difficulty: ClassVar[str] = "scales"

    smoothness: float = 1.0
    scales: int = 3

    def _check(self) -> None:
        check("scales", self.scales, 1 <= self.scales <= 3, "1, 2 or 3")

    @property
    def classes(self) -> int:
        return LABELS

    @property
    def offsets(self) -> Tensor:
        """The corners of the largest square, which must lie on the map."""
        reach = 3 ** (self.scales - 1) // 2
        return torch.tensor([[-reach, -reach], [reach, reach]]).expand(CONTENT, -1, -1)

    def draw_fields(self, maps: int, generator: torch.Generator) -> Tensor:
        marker = smooth_fields(generator, maps, 1, self.size, 2.0)
        return torch.cat([smooth_fields(generator, maps, LABELS, self.size, self.smoothness), marker], 1)

    def label(self, fields: Tensor, pixels: Tensor, places: Tensor) -> Tensor:
        values, marker = fields.split([LABELS, 1], 1)
        means = [F.avg_pool2d(values, 3**scale, 1, 3**scale // 2) for scale in range(self.scales)]
        best = torch.stack([read_pixels(mean, pixels).argmax(-1) for mean in means], -1)
        bounds = torch.special.ndtri(torch.arange(1, self.scales) / self.scales)
        return best.gather(-1, torch.bucketize(read_pixels(marker, pixels), bounds))
