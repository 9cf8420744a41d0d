"""Clauses on padding: what lies there counts for nothing."""

from dataclasses import replace

import torch

from attnzoo.contract.cases import BATCH, VALID, Case, padding_masks, pyramid, valid_queries
from attnzoo.contract.expect import require, require_close
from attnzoo.geometry import Layout, Pyramid


def padding_is_ignored(case: Case) -> None:
    """Whatever is in padded tokens changes nothing in valid outputs."""
    attention = case.build()
    clean = pyramid(case.maps, masks=padding_masks(case.levels))
    assert clean.layout.padding_mask is not None
    assert clean.pos is not None
    garbage = 1e3 * torch.randn(clean.tokens.shape, generator=torch.Generator().manual_seed(3))
    padded = clean.layout.padding_mask[..., None]
    dirty = replace(clean, tokens=clean.tokens.where(~padded, garbage), pos=clean.pos.where(~padded, -garbage))
    require_close(
        valid_queries(case, dirty, attention(case.queries(dirty), dirty)),
        valid_queries(case, clean, attention(case.queries(clean), clean)),
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
    for box in (False, True):
        queries = case.queries(memory, box)
        together = valid_queries(case, memory, attention(queries, memory))
        for image in range(BATCH):
            inside = ~memory.layout.padding_mask[image]
            layout = Layout.unpadded([sizes[image] for sizes in VALID[: case.levels]], 1)
            alone = Pyramid(memory.tokens[image, inside][None], layout, memory.pos[image, inside][None])
            require_close(
                attention(case.queries_of_image(queries, image, alone), alone)[0],
                together[image],
                "a padded image gives another output than alone: mask padding, and scale references with "
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
    advice = "where all tokens are padding: a softmax over -inf alone is NaN; mask with a finite number, or its result"
    require(output.isfinite().all(), f"the output is not finite {advice}")
    output.sum().backward()
    for name, parameter in attention.named_parameters():
        require(parameter.grad is not None, f"no gradient reaches {name}: use it in forward, or remove it")
        assert parameter.grad is not None
        require(parameter.grad.isfinite().all(), f"the gradient of {name} is not finite {advice}")
