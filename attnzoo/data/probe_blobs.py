"""Probes that ask about blobs, which lie anywhere on the map."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnzoo.data.probes import CONTENT, PROBES, ProbeBatch, ProbeSpec, check, draw_among, draw_pixels, make_batch

LABELS = 6


def scatter_blobs(generator: torch.Generator, maps: int, blobs: int, cells: int, size: int) -> Tensor:
    """Pixels (B, blobs, 2) as (x, y): one in each of `blobs` of the cells² cells of a map, drawn at random."""
    side = size // cells
    index = torch.rand(maps, cells**2, generator=generator).argsort(1)[:, :blobs]
    within = torch.randint(1, side - 1, (maps, blobs, 2), generator=generator)
    return torch.stack([index % cells, index // cells], -1) * side + within


def draw_blobs(pixels: Tensor, channels: Tensor, count: int, size: int, sigma: float) -> Tensor:
    """Fields (B, count, size, size): the sum of Gaussian blobs of height 1 at `pixels` (B, N, 2).

    `channels` (B, N, count): how strong each blob is in each field.
    """
    axis = torch.arange(size)
    x, y = (torch.exp(-((axis - pixels[..., i, None]) ** 2) / (2 * sigma**2)) for i in range(2))
    return torch.einsum("bnc,bny,bnx->bcyx", channels, y, x)


def _one_hot(index: Tensor, count: int) -> Tensor:
    return torch.nn.functional.one_hot(index, count).float()


@PROBES.register("find")
@dataclass(frozen=True, kw_only=True)
class Find(ProbeSpec):
    """Says the label of the blob that has the key which the query names, wherever it lies.

    `keys`: 2 to 8, blobs per map, one of each key, with one of six labels each.
    """

    capability: ClassVar[str] = "find by content"
    difficulty: ClassVar[str] = "keys"

    keys: int = 8

    def _check(self) -> None:
        check("keys", self.keys, 2 <= self.keys <= CONTENT, f"from 2 to {CONTENT}")

    @property
    def classes(self) -> int:
        return LABELS

    def generate(self, maps: int, generator: torch.Generator) -> ProbeBatch:
        blobs = scatter_blobs(generator, maps, self.keys, 4, self.size)
        labels = torch.randint(LABELS, (maps, self.keys), generator=generator)
        keys = torch.arange(self.keys).expand(maps, -1)
        channels = torch.cat([_one_hot(labels, LABELS), _one_hot(keys, CONTENT)], -1)
        fields = draw_blobs(blobs, channels, LABELS + CONTENT, self.size, 1.5)
        pixels = draw_pixels(generator, torch.ones(maps, self.size**2, dtype=torch.bool), self.size)
        asked = torch.randint(self.keys, pixels.shape[:2], generator=generator)
        return make_batch(fields, pixels, asked, labels.gather(1, asked)[..., None])


@PROBES.register("relation")
@dataclass(frozen=True, kw_only=True)
class Relation(ProbeSpec):
    """Says in which direction from the reference the blob lies that has the key which the query names.

    Eight blobs lie anywhere, one of each key; the one named is 2 to 5 pixels from the reference. `directions`: 2, 4 or
    8 equal sectors, turned by 0.1 rad so that no blob lies on a border.
    """

    capability: ClassVar[str] = "relative position of two things"
    difficulty: ClassVar[str] = "directions"
    near: ClassVar[tuple[int, int]] = (2, 5)

    directions: int = 4

    def _check(self) -> None:
        check("directions", self.directions, self.directions in (2, 4, 8), "2, 4 or 8")

    @property
    def classes(self) -> int:
        return self.directions

    def generate(self, maps: int, generator: torch.Generator) -> ProbeBatch:
        blobs = scatter_blobs(generator, maps, CONTENT, 4, self.size)
        fields = draw_blobs(blobs, torch.eye(CONTENT).expand(maps, -1, -1), CONTENT, self.size, 1.5)
        y, x = torch.meshgrid(torch.arange(self.size), torch.arange(self.size), indexing="ij")
        vectors = blobs[:, None] - torch.stack([x, y], -1).reshape(-1, 1, 2)
        squared = vectors.square().sum(-1)
        near = (squared >= self.near[0] ** 2) & (squared <= self.near[1] ** 2)
        pixels = draw_pixels(generator, near.any(-1), self.size)
        index = pixels[..., 1] * self.size + pixels[..., 0]
        rows = torch.arange(maps)[:, None]
        asked = draw_among(generator, near[rows, index])
        dx, dy = vectors[rows, index, asked].unbind(-1)
        turns = (torch.atan2(dy.double(), dx.double()) + 0.1) / (2 * math.pi)
        sectors = (turns * self.directions).floor().long() % self.directions
        return make_batch(fields, pixels, asked, sectors[..., None])


@PROBES.register("region")
@dataclass(frozen=True, kw_only=True)
class Region(ProbeSpec):
    """Says how many blobs of the kind that the query names lie within a radius of the reference: 0 to 3, or more.

    Unlike in `count`, blobs lie anywhere in the region. Each of 25 cells of the map has a blob of one of four kinds
    with probability 0.7. `radius`: in pixels.
    """

    capability: ClassVar[str] = "count in a region"
    difficulty: ClassVar[str] = "radius"
    most: ClassVar[int] = 4
    kinds: ClassVar[int] = 4

    radius: float = 6.0

    def _check(self) -> None:
        check("size", self.size, self.size >= 15, "at least 15 pixels")
        check("radius", self.radius, 1 <= self.radius < self.size, f"from 1 to below size = {self.size}")

    @property
    def classes(self) -> int:
        return self.most + 1

    def generate(self, maps: int, generator: torch.Generator) -> ProbeBatch:
        blobs = scatter_blobs(generator, maps, 25, 5, self.size)
        there = torch.rand(maps, 25, generator=generator) < 0.7
        kinds = _one_hot(torch.randint(self.kinds, (maps, 25), generator=generator), self.kinds) * there[..., None]
        fields = draw_blobs(blobs, kinds, self.kinds, self.size, 1.0)
        pixels = draw_pixels(generator, torch.ones(maps, self.size**2, dtype=torch.bool), self.size)
        asked = torch.randint(self.kinds, pixels.shape[:2], generator=generator)
        inside = (blobs[:, None] - pixels[:, :, None]).square().sum(-1) <= self.radius**2
        of_kind = kinds[torch.arange(maps)[:, None], :, asked] > 0
        return make_batch(fields, pixels, asked, (inside & of_kind).sum(-1, keepdim=True).clamp(max=self.most))
