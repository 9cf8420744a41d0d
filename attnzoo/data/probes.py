"""Probes: synthetic maps with queries, each of which needs one capability of an attention.

Batches are generated as tensors when they are used; there are no files. A query names what it asks for in its content
and has a reference point at the centre of a pixel. Maps are smooth, as feature maps are: where neighbouring pixels are
independent, a sampling location gets no useful gradient.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attnzoo.data.checks import check_option
from attnzoo.data.pixels import PixelTransform
from attnzoo.data.registries import SPLITS
from attnzoo.errors import UserError
from attnzoo.registry import Registry

CHANNELS = 16  # of the maps; those that a probe does not use are zero
CONTENT = 8  # features of a query's content
QUERIES = 32  # per map, at different pixels
VAL_SEED = 0  # validation maps are those of this seed in every run

PROBES: Registry[Callable[..., "ProbeSpec"]] = Registry("probe")
PROBE_AUGMENTATIONS: Registry[Callable[..., PixelTransform]] = Registry("augmentation")


@PROBE_AUGMENTATIONS.register("none")
def _none(split: str) -> PixelTransform:
    """No augmentation: every training map is new."""
    return PixelTransform()


@dataclass(frozen=True, eq=False)
class ProbeBatch:
    """Maps with their queries and answers.

    - `maps`: (B, 16, h, w)
    - `references`: (B, Q, 2), (x, y) in [0, 1], centres of different pixels
    - `content`: (B, Q, 8), one-hot: what the query asks for
    - `labels`: (B, Q, A) int64 in [0, classes)
    """

    maps: Tensor
    references: Tensor
    content: Tensor
    labels: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the model gets."""
        return self.maps, self.references, self.content

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, images: slice) -> "ProbeBatch":
        return self._map(lambda tensor: tensor[images])

    def to(self, device: torch.device | str) -> "ProbeBatch":
        """The batch on `device`."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "ProbeBatch":
        return ProbeBatch(*map(function, (self.maps, self.references, self.content, self.labels)))


@dataclass(frozen=True, kw_only=True)
class ProbeSpec(ABC):
    """Options of all probes, and what is known of one.

    `size`: side of the maps in pixels. `val_maps`: validation maps, of 32 queries each.
    """

    version: ClassVar[int] = 1
    """Increment when the same options give other batches."""
    capability: ClassVar[str]
    """What an attention must do, for tables."""
    difficulty: ClassVar[str]
    """The option that makes the probe harder."""
    train_length: ClassVar[None] = None
    """Training maps are endless."""
    ceiling: ClassVar[float] = 1.0
    """The accuracy of a model without errors: the map and the query determine every answer."""

    size: int = 20
    val_maps: int = 64

    def __post_init__(self) -> None:
        check("size", self.size, 12 <= self.size <= 256, "from 12 to 256 pixels")
        check("val_maps", self.val_maps, self.val_maps >= 1, "at least 1")
        self._check()

    @abstractmethod
    def _check(self) -> None:
        """Raise UserError for options out of range."""

    @property
    def answers(self) -> int:
        """Number of answers per query."""
        return 1

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of classes of an answer."""

    @property
    def num_classes(self) -> int:
        """Scores of a query: answers times classes."""
        return self.answers * self.classes

    @property
    def image_shape(self) -> tuple[int, int]:
        return self.size, self.size

    def fingerprint(self) -> str:
        return str(self.version)

    def check(self) -> None:
        """Raise UserError for options out of range."""
        self._check()

    def build(self, split: str, transform: Any = None) -> "ProbeSplit":
        """The "train" or "val" split."""
        return ProbeSplit(self, split)

    @abstractmethod
    def generate(self, maps: int, generator: torch.Generator) -> ProbeBatch:
        """A batch of random maps and queries."""


@dataclass(frozen=True)
class ProbeSplit:
    """One split of a probe: batch i of a seed, the same whenever it is asked for.

    Training and validation maps are drawn from different streams of random numbers.
    """

    spec: ProbeSpec
    split: str

    def batch(self, seed: int, number: int, maps: int) -> ProbeBatch:
        """Batch `number` of `seed`, with `maps` maps."""
        entropy = [seed, self.spec.version, SPLITS.index(self.split), number]
        state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
        return self.spec.generate(maps, torch.Generator().manual_seed(int(state) >> 1))


def check(name: str, value: Any, valid: bool, allowed: str) -> None:
    """Raise UserError unless an option of `data.dataset` is valid."""
    check_option(f"data.dataset.{name}", value, valid, allowed)


def smooth_fields(generator: torch.Generator, maps: int, channels: int, size: int, sigma: float) -> Tensor:
    """Normal noise blurred by a Gaussian of `sigma` pixels, mean 0 and variance 1, periodic: (B, C, size, size)."""
    noise = torch.randn(maps, channels, size, size, generator=generator)
    y, x = torch.fft.fftfreq(size), torch.fft.rfftfreq(size)
    blur = torch.exp(-2 * (torch.pi * sigma) ** 2 * (y[:, None] ** 2 + x**2))
    fields = torch.fft.irfft2(torch.fft.rfft2(noise) * blur, s=(size, size))
    full = torch.exp(-2 * (torch.pi * sigma) ** 2 * (y[:, None] ** 2 + y**2))
    return fields / full.square().mean().sqrt()


def make_batch(fields: Tensor, pixels: Tensor, asked: Tensor, labels: Tensor) -> ProbeBatch:
    """The batch of maps (B, C, h, w), reference pixels (B, Q, 2), index of the content (B, Q), labels (B, Q, A)."""
    maps = F.pad(fields, (0, 0, 0, 0, 0, CHANNELS - fields.shape[1]))
    return ProbeBatch(maps, (pixels + 0.5) / fields.shape[-1], F.one_hot(asked, CONTENT).float(), labels)


def draw_pixels(generator: torch.Generator, allowed: Tensor, size: int) -> Tensor:
    """For each map QUERIES different pixels (x, y) among those `allowed`, (B, size²) bool: (B, Q, 2) int64."""
    order = torch.rand(allowed.shape, generator=generator).masked_fill(~allowed, -1.0)
    index = order.topk(QUERIES, 1).indices
    return torch.stack([index % size, index // size], -1)


def draw_among(generator: torch.Generator, allowed: Tensor) -> Tensor:
    """A random index of the last axis among those `allowed` (…, N): (…) int64."""
    return torch.rand(allowed.shape, generator=generator).masked_fill(~allowed, -1.0).argmax(-1)


def read_pixels(fields: Tensor, pixels: Tensor) -> Tensor:
    """Values of fields (B, C, h, w) at pixels (B, …, 2) as (x, y): (B, …, C)."""
    width = fields.shape[-1]
    index = (pixels[..., 1] * width + pixels[..., 0]).flatten(1)
    values = fields.flatten(2).transpose(1, 2).gather(1, index[..., None].expand(-1, -1, fields.shape[1]))
    return values.unflatten(1, pixels.shape[1:-1])


def enough_pixels(count: int, options: str) -> None:
    """Raise UserError if fewer pixels than queries can be references."""
    if count < QUERIES:
        raise UserError(
            f"data.dataset: only {count} pixels can be reference points of {QUERIES} queries with {options}; "
            "use larger maps (size)",
            key="data.dataset",
        )
