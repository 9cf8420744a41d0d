"""Clauses on the inputs that an output depends on: its own queries and its own image."""

from dataclasses import replace

import torch

from attnzoo.contract.cases import BATCH, Case, map_queries, pyramid
from attnzoo.contract.expect import changes, require, require_close
from attnzoo.geometry import Layout, Pyramid


def depends_on_queries(case: Case) -> None:
    """Changing the query tokens alone changes most outputs, or none if it declares `depends_on_queries` False."""
    attention, memory = case.build(), pyramid(case.maps)
    queries = case.queries(memory)
    generator = torch.Generator().manual_seed(6)
    other = replace(queries, tokens=torch.randn(queries.tokens.shape, generator=generator))
    fraction = changes(attention(other, memory), attention(queries, memory)).float().mean()
    if not attention.depends_on_queries:
        require(
            fraction == 0, f"depends_on_queries is False, but other query tokens change {fraction:.0%} of the outputs"
        )
        return
    require(
        fraction > 0.5,
        f"other query tokens change {fraction:.0%} of the outputs: compute queries from `queries`, not from `memory`",
    )


def other_image(case: Case) -> None:
    """Object queries of one image can attend to the memory of another image, of another size."""
    attention = case.build()
    first, second = pyramid(case.maps), pyramid(tuple((h + 1, w + 2) for h, w in case.maps), seed=4)
    queries = case.queries(first)
    require(
        not torch.allclose(attention(queries, first), attention(queries, second), atol=1e-3),
        "the memory of another image gives the same output: read keys and values from `memory`",
    )
    flipped_memory = replace(
        second, tokens=second.tokens.flip(0), pos=None if second.pos is None else second.pos.flip(0)
    )
    flipped_queries = map_queries(queries, lambda tensor: tensor.flip(0))
    require_close(
        attention(queries, flipped_memory),
        attention(flipped_queries, second).flip(0),
        "images in another order give other outputs: nothing may depend on the index in the batch",
        atol=1e-5,
        rtol=1e-5,
    )


def batch_independence(case: Case) -> None:
    """An image gives the same output alone and in a batch."""
    attention, memory = case.build(), pyramid(case.maps)
    assert memory.pos is not None
    queries = case.queries(memory)
    batched = attention(queries, memory)
    for image in range(BATCH):
        alone = Pyramid(memory.tokens[image, None], Layout.unpadded(case.maps, 1), memory.pos[image, None])
        require_close(
            attention(case.queries_of_image(queries, image, alone), alone)[0],
            batched[image],
            "an image alone gives another output than in a batch: do not mix or normalise over the batch",
            atol=1e-5,
            rtol=1e-5,
        )
