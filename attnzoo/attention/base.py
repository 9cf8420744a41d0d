"""Base class and registry of attentions."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.attention.recording import Recordable
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot
from attnzoo.registry import Registry


class MissingReferencePointsError(ValueError):
    """The queries have no reference points, but the attention needs them."""


class Attention(Recordable):
    """Attention from queries to a feature pyramid: `attn(queries, memory)` -> (B, Q, C), without the residual.

    Queries are projected from `queries`, keys and values from `memory`, in every role. In self-attention,
    `attn(memory.as_queries(), memory)`, they have the same tokens.

    A subclass takes its `Slot` and keyword-only options. It declares the roles it supports, those in which its queries
    need reference points, and whether the tokens of the queries have an effect. Residual, norm and drop path belong to
    the block. Constructors raise `UserError` for invalid options.
    """

    roles: ClassVar[frozenset[Role]] = frozenset(Role)
    needs_reference_points: frozenset[Role] = frozenset()  # of an instance, if it depends on options
    depends_on_queries: bool = True  # whether query tokens have an effect; False for a convolution, say

    def __init__(self, slot: Slot):
        super().__init__()
        self.slot = slot

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        """Attend from queries (B, Q, C) to memory (B, S, C); returns (B, Q, C)."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(queries, memory)")

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        """Multiply-accumulates that the algorithm needs for one image, as its paper counts them.

        `queries` is the number of object queries, or the layout of queries on a grid.
        """
        raise NotImplementedError(f"{type(self).__name__} has no flops(queries, memory)")

    def extra_flops(self, queries: int | Layout, memory: Layout) -> int:
        """Multiply-accumulates that the implementation adds to `flops`, such as those of padding or of masked keys.

        Negative if it needs fewer.
        """
        return 0

    def check_levels(self, layout: Layout) -> None:
        """Raise ValueError unless the memory has the number of levels of the slot."""
        if layout.num_levels != self.slot.levels:
            raise ValueError(f"expected {self.slot.levels} feature levels, got {layout.num_levels}")

    def check_grid(self, queries: Queries, layout: Layout) -> None:
        """Raise ValueError unless there is one query per token of the memory."""
        if queries.tokens.shape[1] != layout.num_tokens:
            raise ValueError(
                f"{type(self).__name__} in role {self.slot.role} needs one query per token of the memory: "
                f"expected {layout.num_tokens}, got {queries.tokens.shape[1]}"
            )

    def require_reference_points(self, queries: Queries) -> Tensor:
        """The reference points of the queries, (B, Q, 2 or 4); raises MissingReferencePointsError if they have none."""
        points = queries.reference_points
        if points is None or points.shape[-1] not in (2, 4):
            actual = "None" if points is None else f"shape {tuple(points.shape)}"
            raise MissingReferencePointsError(
                f"{type(self).__name__} needs reference points of shape (B, Q, 2) or (B, Q, 4), got {actual}"
            )
        return points


def is_self_attention(queries: Queries, memory: Pyramid) -> bool:
    """Whether the queries are the tokens of the memory, as `memory.as_queries()` gives them."""
    return queries.tokens is memory.tokens and queries.pos is memory.pos


def num_queries(queries: int | Layout) -> int:
    """Q, the number of queries."""
    return queries.num_tokens if isinstance(queries, Layout) else queries


def statically_true(condition: bool) -> bool:
    """Whether a condition on sizes holds; in a graph of dynamic sizes only if always, so that the graph fits all."""
    if not torch.compiler.is_compiling():
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def linear_fp32(linear: nn.Linear, x: Tensor) -> Tensor:
    """`linear(x)` in float32 or higher, even under autocast; for layers that predict coordinates."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    bias = None if linear.bias is None else linear.bias.to(dtype)
    with autocast_disabled(x):
        return F.linear(x.to(dtype), linear.weight.to(dtype), bias)


def autocast_disabled(x: Tensor) -> AbstractContextManager[Any]:
    """Context that disables autocast on the device of `x`."""
    device_type = x.device.type
    autocast = device_type != "meta" and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if autocast else nullcontext()


ATTENTIONS: Registry[type[Attention]] = Registry("attention", base=Attention)
register = ATTENTIONS.register
