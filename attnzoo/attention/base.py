"""The interface every attention fulfils, and the registry it is entered in."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.attention.recording import Traceable
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot
from attnzoo.registry import Registry


class Attention(Traceable):
    """Queries look at a pyramid: `attn(queries, memory)`, (B, Q, C) before the residual.

    A subclass takes its `Slot` and keyword-only options, declares the roles it can stand in and whether it
    needs references, and owns neither residual nor normalisation nor drop path: those are the block's.
    Wrong values of options are `UserError`s.
    """

    roles: ClassVar[frozenset[Role]] = frozenset(Role)
    needs_refs: ClassVar[bool] = False

    def __init__(self, slot: Slot):
        super().__init__()
        self.slot = slot

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        """Attend from queries (B, Q, C) to memory (B, S, C); returns (B, Q, C)."""
        raise NotImplementedError

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        """Multiply-accumulates of one forward pass for one image.

        `queries` is the number of object queries, or the layout of queries that lie on a grid.
        """
        raise NotImplementedError


def count(queries: int | Layout) -> int:
    """Q, the number of queries."""
    return queries.tokens if isinstance(queries, Layout) else queries


def full_precision(linear: nn.Linear, x: Tensor) -> Tensor:
    """`linear(x)` in float32 at least, whatever autocast says: for what becomes a coordinate."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    bias = None if linear.bias is None else linear.bias.to(dtype)
    with without_autocast(x):
        return F.linear(x.to(dtype), linear.weight.to(dtype), bias)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which what is computed on the device of `x` keeps its precision."""
    kind = x.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if autocast else nullcontext()


ATTENTIONS: Registry[type[Attention]] = Registry("attention")
register = ATTENTIONS.register
