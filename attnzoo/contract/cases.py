"""Inputs of the clauses: an attention in one role, small pyramids and queries.

Default options must be valid for any slot. An option named `level` is set to the last level.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnzoo.attention import ATTENTIONS, Attention, build, names
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot

DIM, HEADS, BATCH, NUM_OBJECTS = 16, 4, 2, 5
MAPS = ((5, 7), (3, 4))
VALID = (((4, 5), (5, 3)), ((2, 3), (3, 2)))  # per level of MAPS and per image: valid (h, w)


@dataclass(frozen=True)
class Case:
    """One attention in one role; `options` are (name, value) pairs, the others have their defaults."""

    name: str
    role: Role
    options: tuple[tuple[str, Any], ...] = field(default=())

    def __str__(self) -> str:
        return "-".join([self.name, *(str(value) for _, value in self.options), self.role])

    @property
    def maps(self) -> tuple[tuple[int, int], ...]:
        return MAPS[:1] if self.role == Role.STAGE else MAPS

    @property
    def levels(self) -> int:
        return len(self.maps)

    def build(self, *, seed: int = 0, levels: int | None = None, perturb: bool = True, layer: int = 0) -> Attention:
        """The attention in eval mode; parameters that are initialised to zero are perturbed."""
        torch.manual_seed(seed)
        slot = Slot(DIM, HEADS, levels or self.levels, self.role, layer)
        options = {"level": slot.levels - 1} if "level" in ATTENTIONS.options(self.name) else {}
        attention = build(self.name, slot, **{**options, **dict(self.options)}).eval()
        if perturb:
            with torch.no_grad():
                for parameter in attention.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return attention

    def queries(self, memory: Pyramid, boxes: bool = False, seed: int = 1) -> Queries:
        """The queries of this role: the tokens of the memory, or object queries with points or boxes as references."""
        if self.role != Role.DECODER:
            return memory.as_queries()
        generator = torch.Generator().manual_seed(seed)
        batch = memory.tokens.shape[0]
        tokens, pos = torch.randn(2, batch, NUM_OBJECTS, DIM, generator=generator)
        refs = 0.1 + 0.8 * torch.rand(batch, NUM_OBJECTS, 4 if boxes else 2, generator=generator)
        return Queries(tokens, refs, pos)

    def queries_of_image(self, queries: Queries, image: int, memory: Pyramid) -> Queries:
        """The queries of one image; `memory` is the pyramid of that image alone."""
        if self.role != Role.DECODER:
            return memory.as_queries()
        return map_queries(queries, lambda tensor: tensor[image, None])


def map_queries(queries: Queries, function: Callable[[Tensor], Tensor]) -> Queries:
    """Object queries with `function` applied to tokens, references and positions."""
    refs, pos = (None if x is None else function(x) for x in (queries.reference_points, queries.pos))
    return Queries(function(queries.tokens), refs, pos)


def roles(name: str) -> list[Role]:
    """The roles that a registered attention declares; all roles if the declaration is invalid."""
    declared = getattr(ATTENTIONS.get(name), "roles", ())
    return [role for role in Role if not isinstance(declared, (set, frozenset)) or role in declared] or list(Role)


def cases() -> list[Case]:
    """Every registered attention in every role it declares."""
    return [Case(name, role) for name in names() for role in roles(name)]


def pyramid(
    maps: tuple[tuple[int, int], ...], batch: int = BATCH, masks: list[Tensor] | None = None, seed: int = 0
) -> Pyramid:
    """Random tokens and positions on maps of the given (h, w)."""
    generator = torch.Generator().manual_seed(seed)
    layout = Layout.from_masks(masks) if masks else Layout.unpadded(maps, batch)
    tokens, pos = torch.randn(2, batch, layout.num_tokens, DIM, generator=generator)
    return Pyramid(tokens, layout, pos)


def padding_masks(levels: int) -> list[Tensor]:
    """One mask per level for two images of different sizes, True where padded; sizes are rounded per level."""
    masks = []
    for (h, w), valid in list(zip(MAPS, VALID, strict=True))[:levels]:
        mask = torch.ones(BATCH, h, w, dtype=torch.bool)
        for image, (vh, vw) in enumerate(valid):
            mask[image, :vh, :vw] = False
        masks.append(mask)
    return masks


def valid_queries(case: Case, memory: Pyramid, output: Tensor) -> list[Tensor]:
    """Outputs (valid queries, C) per image: object queries are all valid, grid queries outside padding."""
    if case.role == Role.DECODER or memory.layout.padding_mask is None:
        return list(output)
    return [o[~p] for o, p in zip(output, memory.layout.padding_mask, strict=True)]
