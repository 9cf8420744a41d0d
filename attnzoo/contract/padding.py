"""Clauses on padding: it does not affect outputs."""

from dataclasses import replace

import torch

from attnzoo.contract.cases import BATCH, VALID, Case, padding_masks, pyramid, valid_queries
from attnzoo.contract.expect import require, require_close
from attnzoo.geometry import Layout, Pyramid


def padding_is_ignored(case: Case) -> None:
    """Values in padded tokens do not change valid outputs."""
    attention = case.build()
    memory = pyramid(case.maps, masks=padding_masks(case.levels))
    assert memory.layout.padding_mask is not None
    assert memory.pos is not None
    noise = 1e3 * torch.randn(memory.tokens.shape, generator=torch.Generator().manual_seed(3))
    padded = memory.layout.padding_mask[..., None]
    changed = replace(memory, tokens=memory.tokens.where(~padded, noise), pos=memory.pos.where(~padded, -noise))
    require_close(
        valid_queries(case, changed, attention(case.queries(changed), changed)),
        valid_queries(case, memory, attention(case.queries(memory), memory)),
        "other values in padded tokens change valid outputs: mask keys or values with memory.layout.padding_mask",
        atol=2e-5,
        rtol=1e-5,
    )


def padded_equals_unpadded(case: Case) -> None:
    """The output of an image does not depend on the amount of padding."""
    attention = case.build()
    memory = pyramid(case.maps, masks=padding_masks(case.levels))
    assert memory.layout.padding_mask is not None
    assert memory.pos is not None
    for boxes in (False, True):
        queries = case.queries(memory, boxes)
        batched = valid_queries(case, memory, attention(queries, memory))
        for image in range(BATCH):
            inside = ~memory.layout.padding_mask[image]
            layout = Layout.unpadded([sizes[image] for sizes in VALID[: case.levels]], 1)
            alone = Pyramid(memory.tokens[image, inside][None], layout, memory.pos[image, inside][None])
            require_close(
                attention(case.queries_of_image(queries, image, alone), alone)[0],
                batched[image],
                "an image gives another output with padding than without: mask padding, and scale references with "
                "memory.layout.valid_ratios",
                atol=2e-5,
                rtol=1e-5,
            )


def all_padded(case: Case) -> None:
    """An image without a valid token gives finite outputs and gradients."""
    masks = padding_masks(case.levels)
    for mask in masks:
        mask[0] = True
    attention, memory = case.build(), pyramid(case.maps, masks=masks)
    output = attention(case.queries(memory), memory)
    advice = (
        "if all tokens are padding: softmax over -inf only gives NaN; mask scores with a finite value, or the weights"
    )
    require(output.isfinite().all(), f"the output is not finite {advice}")
    output.sum().backward()
    for name, parameter in attention.named_parameters():
        require(parameter.grad is not None, f"no gradient reaches {name}: use it in forward, or remove it")
        assert parameter.grad is not None
        require(parameter.grad.isfinite().all(), f"the gradient of {name} is not finite {advice}")
