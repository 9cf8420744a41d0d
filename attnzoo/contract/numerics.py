"""Clauses on precision and determinism."""

from dataclasses import replace

import torch
from torch import Tensor

from attnzoo.contract.cases import Case, pyramid
from attnzoo.contract.expect import context, require, require_close


def precision(case: Case) -> None:
    """bfloat16 autocast is close to float32; a float64 attention computes in float64 throughout."""
    attention, memory = case.build(), pyramid(case.maps)
    assert memory.pos is not None
    queries = case.queries(memory)
    expected = attention(queries, memory)
    with context("under bfloat16 autocast"), torch.autocast("cpu", torch.bfloat16):
        autocast_output = attention(queries, memory)
    require_close(
        autocast_output.float(),
        expected,
        "bfloat16 autocast differs from float32: compute coordinates in float32",
        atol=0.05 * float(expected.detach().abs().max()),
        rtol=0.05,
    )
    memory_fp64 = replace(memory, tokens=memory.tokens.double(), pos=memory.pos.double())
    queries_fp64 = replace(
        queries, tokens=queries.tokens.double(), pos=None if queries.pos is None else queries.pos.double()
    )
    with context("(in float64: create tensors in the dtype of the tokens)"):
        output = attention.double()(queries_fp64, memory_fp64)
    require(
        output.dtype == torch.float64, f"with float64 inputs it returns {output.dtype}: keep the dtype of the tokens"
    )
    message = "float64 gives another output than float32"
    require_close(output.float(), expected, message, atol=1e-5, rtol=1e-5)


def determinism(case: Case) -> None:
    """It is deterministic in eval mode; the same seed gives bit-identical outputs and gradients in training."""
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
