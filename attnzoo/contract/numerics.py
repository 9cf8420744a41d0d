"""Clauses on precision and repeatability."""

from dataclasses import replace

import torch
from torch import Tensor

from attnzoo.contract.cases import Case, pyramid
from attnzoo.contract.expect import context, require, require_close


def precision(case: Case) -> None:
    """bfloat16 autocast stays near float32; a float64 attention works in float64 throughout."""
    attention, memory = case.build(), pyramid(case.maps)
    assert memory.pos is not None
    queries = case.queries(memory)
    expected = attention(queries, memory)
    with context("under bfloat16 autocast"), torch.autocast("cpu", torch.bfloat16):
        half = attention(queries, memory)
    require_close(
        half.float(),
        expected,
        "bfloat16 autocast strays from float32: compute coordinates in float32",
        atol=0.05 * float(expected.detach().abs().max()),
        rtol=0.05,
    )
    precise = replace(memory, tokens=memory.tokens.double(), pos=memory.pos.double())
    precise_queries = replace(
        queries, tokens=queries.tokens.double(), pos=None if queries.pos is None else queries.pos.double()
    )
    with context("(in float64: create tensors in the dtype of the tokens)"):
        output = attention.double()(precise_queries, precise)
    require(output.dtype == torch.float64, f"from float64 it returns {output.dtype}: keep the dtype of the tokens")
    message = "float64 gives another output than float32"
    require_close(output.float(), expected, message, atol=1e-5, rtol=1e-5)


def determinism(case: Case) -> None:
    """In eval mode nothing is random; the same seed gives the same parameters, outputs and gradients, bit for bit."""
    memory = pyramid(case.maps)
    attention, queries = case.build(), case.queries(memory)
    require(
        torch.equal(attention(queries, memory), attention(queries, memory)),
        "in eval mode two calls give different outputs: draw random numbers in training mode only",
    )
    results: list[list[Tensor]] = []
    for _ in range(2):
        attention = case.build(perturb=False).train()
        output = attention(case.queries(memory), memory)
        output.square().sum().backward()
        results.append([output, *(p.grad for p in attention.parameters() if p.grad is not None)])
    require(
        all(map(torch.equal, *results)),
        "the same seed gives different outputs or gradients: draw random numbers from torch's generator alone",
    )
