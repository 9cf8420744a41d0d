"""Clauses on what an attention is and which inputs it takes."""

from dataclasses import replace

import torch
from torch import Tensor

from attnzoo.attention import ATTENTIONS, Attention
from attnzoo.contract.cases import BATCH, DIM, MAPS, OBJECTS, Case, pyramid
from attnzoo.contract.expect import context, require
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot


def interface(case: Case) -> None:
    """It is an `Attention` whose constructor takes the slot and whose roles exist; its default options do."""
    kind: object = ATTENTIONS.get(case.name)
    given = f"class {kind.__name__}" if isinstance(kind, type) else type(kind).__name__
    require(
        isinstance(kind, type) and issubclass(kind, Attention),
        f"expected a subclass of attnzoo.attention.Attention, given a {given}: derive the class from Attention",
    )
    declared = ATTENTIONS.get(case.name).roles
    require(
        isinstance(declared, (set, frozenset)) and bool(declared) and declared <= set(Role),
        f"roles = {declared!r}: expected a non-empty set of Role, such as frozenset({{Role.ENCODER}})",
    )
    try:
        attention = case.build(perturb=False)
    except UserError as error:
        require(False, f"the constructor refuses these options: {error}: choose defaults that any slot takes")
    except TypeError as error:
        error.add_note("(expected: __init__(self, slot, *, option=default))")
        raise
    slot = getattr(attention, "slot", None)
    require(isinstance(slot, Slot), f"slot = {slot!r}: expected a Slot: call super().__init__(slot)")


def shape(case: Case) -> None:
    """The output has the shape of the queries, is float32 and finite."""
    attention, memory = case.build(), pyramid(case.maps)
    for box in (False, True):
        queries = case.queries(memory, box)
        _check_output(attention(queries, memory), queries)


def _check_output(output: object, queries: Queries) -> None:
    if not isinstance(output, Tensor):
        require(False, f"forward returns a {type(output).__name__}, expected a tensor (B, Q, C)")
    assert isinstance(output, Tensor)
    expected, given = tuple(queries.tokens.shape), tuple(output.shape)
    require(given == expected, f"forward returns shape {given}, expected {expected}: (B, Q, C) of the queries")
    require(output.dtype == queries.tokens.dtype, f"forward returns {output.dtype}, expected {queries.tokens.dtype}")
    require(output.isfinite().all(), "forward returns values that are not finite: check divisions, log and sqrt")


def other_maps(case: Case) -> None:
    """One pixel, one row, one column: a built attention takes maps of any size."""
    attention = case.build()
    for size in ((1, 1), (1, 6), (6, 1), (2, 9)):
        memory = pyramid((size,) * case.levels)
        where = f"on maps of {size[0]} x {size[1]} pixels"
        with context(where):
            output = attention(case.queries(memory), memory)
        require(output.isfinite().all(), f"the output is not finite {where}: check divisions by h - 1 or w - 1")


def number_of_levels(case: Case) -> None:
    """It can be built for one level and for three."""
    for levels in (1, 3):
        memory = pyramid((*MAPS, (2, 2))[:levels])
        queries = case.queries(memory)
        with context(f"with levels = {levels}"):
            _check_output(case.build(levels=levels)(queries, memory), queries)


def references_needed(case: Case) -> None:
    """Without references an attention works, or says that it needs them."""
    attention, memory = case.build(), pyramid(case.maps)
    queries = replace(case.queries(memory), reference_points=None)
    needed = case.role in attention.needs_reference_points
    try:
        output = attention(queries, memory)
    except Exception as error:
        if not needed:
            error.add_note(f"(queries without reference points: add {case.role} to needs_reference_points)")
            raise
        said = isinstance(error, ValueError) and "reference" in str(error)
        require(said, f"without references it raises {error!r}: expected a ValueError that says 'reference'")
        return
    require(
        not needed, f"needs_reference_points has {case.role}, but it runs without them: remove it, or raise ValueError"
    )
    _check_output(output, queries)


def state_dict(case: Case) -> None:
    """Its state dict holds all that it has learned; another seed gives other parameters."""
    memory = pyramid(case.maps)
    queries = case.queries(memory)
    source, target = case.build(seed=0), case.build(seed=1)
    require(
        not torch.equal(source(queries, memory), target(queries, memory)),
        "parameters of another seed give the same output: forward uses none",
    )
    target.load_state_dict(source.state_dict())
    require(
        torch.equal(source(queries, memory), target(queries, memory)),
        "after load_state_dict the output differs: keep tensors as nn.Parameter or with register_buffer",
    )


def meta(case: Case) -> None:
    """It can be built and run without memory, as a check of a configuration does."""
    with torch.device("meta"):
        attention = case.build(perturb=False)
        layout = Layout.unpadded(case.maps, BATCH, "meta")
        memory = Pyramid(torch.empty(BATCH, layout.num_tokens, DIM), layout)
        objects = Queries(torch.empty(BATCH, OBJECTS, DIM), torch.empty(BATCH, OBJECTS, 4))
        queries = objects if case.role == Role.DECODER else memory.as_queries()
        with context("(on the meta device: do not read values of tensors by item, tolist or if)"):
            output = attention(queries, memory)
    require(
        output.device.type == "meta", f"the output is on {output.device}, expected meta: create tensors on its device"
    )
    require(
        output.shape == queries.tokens.shape, f"shape {tuple(output.shape)}, expected {tuple(queries.tokens.shape)}"
    )
