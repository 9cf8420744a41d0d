"""The interface every attention fulfils, and the registry it is entered in."""

from typing import ClassVar

from torch import Tensor

from attnzoo.attention.trace import Traceable
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Site
from attnzoo.registry import Registry


class Attention(Traceable):
    """Queries look at a pyramid: `attn(queries, memory)`, (B, Q, C) before the residual.

    A subclass takes its `Site` and keyword-only options, declares the roles it can stand in and whether it
    needs references, and owns neither residual nor normalisation nor drop path: those are the block's.
    Wrong values of options are `UserError`s.
    """

    roles: ClassVar[frozenset[Role]] = frozenset(Role)
    needs_refs: ClassVar[bool] = False

    def __init__(self, site: Site):
        super().__init__()
        self.site = site

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


ATTENTIONS: Registry[type[Attention]] = Registry("attention")
register = ATTENTIONS.register
