"""Clauses on the interface of an attention and the inputs it accepts."""

from dataclasses import replace

import torch
from torch import Tensor

from attnzoo.attention import ATTENTIONS, Attention
from attnzoo.attention.base import MissingReferencePointsError
from attnzoo.contract.cases import BATCH, DIM, MAPS, NUM_OBJECTS, Case, pyramid
from attnzoo.contract.expect import context, require
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot


def interface(case: Case) -> None:
    """It is a subclass of `Attention` that declares valid roles and can be built with its default options."""
    constructor: object = ATTENTIONS.get(case.name)
    actual = f"class {constructor.__name__}" if isinstance(constructor, type) else type(constructor).__name__
    require(
        isinstance(constructor, type) and issubclass(constructor, Attention),
        f"expected a subclass of attnzoo.attention.Attention, got {actual}: derive the class from Attention",
    )
    roles = ATTENTIONS.get(case.name).roles
    require(
        isinstance(roles, (set, frozenset)) and bool(roles) and roles <= set(Role),
        f"roles = {roles!r}: expected a non-empty set of Role, such as frozenset({{Role.ENCODER}})",
    )
    try:
        attention = case.build(perturb=False)
    except UserError as error:
        require(False, f"the constructor rejects these options: {error}: choose defaults that are valid for any slot")
    except TypeError as error:
        error.add_note("(expected: __init__(self, slot, *, option=default))")
        raise
    slot = getattr(attention, "slot", None)
    require(isinstance(slot, Slot), f"slot = {slot!r}: expected a Slot: call super().__init__(slot)")


def shape(case: Case) -> None:
    """The output has the shape and dtype of the queries and is finite."""
    attention, memory = case.build(), pyramid(case.maps)
    for boxes in (False, True):
        queries = case.queries(memory, boxes)
        _check_output(attention(queries, memory), queries)


def _check_output(output: object, queries: Queries) -> None:
    if not isinstance(output, Tensor):
        require(False, f"forward returns a {type(output).__name__}, expected a tensor (B, Q, C)")
    assert isinstance(output, Tensor)
    expected, actual = tuple(queries.tokens.shape), tuple(output.shape)
    require(actual == expected, f"forward returns shape {actual}, expected {expected}: (B, Q, C) of the queries")
    require(output.dtype == queries.tokens.dtype, f"forward returns {output.dtype}, expected {queries.tokens.dtype}")
    require(output.isfinite().all(), "forward returns values that are not finite: check divisions, log and sqrt")


def map_sizes(case: Case) -> None:
    """It accepts maps of any size, such as a single pixel, row or column."""
    attention = case.build()
    for size in ((1, 1), (1, 6), (6, 1), (2, 9)):
        memory = pyramid((size,) * case.levels)
        where = f"on maps of {size[0]} x {size[1]} pixels"
        with context(where):
            output = attention(case.queries(memory), memory)
        require(output.isfinite().all(), f"the output is not finite {where}: check divisions by h - 1 or w - 1")


def num_levels(case: Case) -> None:
    """It works with one level and with three; options other than the defaults may be refused for one of them."""
    for levels in (1, 3):
        memory = pyramid((*MAPS, (2, 2))[:levels])
        queries = case.queries(memory)
        with context(f"with levels = {levels}"):
            try:
                attention = case.build(levels=levels)
            except UserError:
                if case.options:
                    continue
                raise
            _check_output(attention(queries, memory), queries)


def reference_points(case: Case) -> None:
    """Without reference points it works, or declares that it needs them and raises MissingReferencePointsError."""
    attention, memory = case.build(), pyramid(case.maps)
    queries = replace(case.queries(memory), reference_points=None)
    needed = case.role in attention.needs_reference_points
    try:
        output = attention(queries, memory)
    except MissingReferencePointsError as error:
        require(needed, f"{error}: add {case.role} to needs_reference_points")
        return
    except Exception as error:
        error.add_note("(queries without reference points: get them with self.require_reference_points)")
        raise
    require(
        not needed,
        f"needs_reference_points has {case.role}, but it runs without them: remove it, or get them with "
        "self.require_reference_points",
    )
    _check_output(output, queries)


def state_dict(case: Case) -> None:
    """Loading the state dict reproduces the output; another seed initialises other parameters."""
    memory = pyramid(case.maps)
    queries = case.queries(memory)
    source, target = case.build(seed=0), case.build(seed=1)
    require(
        not torch.equal(source(queries, memory), target(queries, memory)),
        "another seed gives the same output: forward uses no parameter",
    )
    target.load_state_dict(source.state_dict())
    require(
        torch.equal(source(queries, memory), target(queries, memory)),
        "after load_state_dict the output differs: keep tensors as nn.Parameter or with register_buffer",
    )


def meta_device(case: Case) -> None:
    """It can be built and run on the meta device, as the check of an experiment does."""
    with torch.device("meta"):
        attention = case.build(perturb=False)
        layout = Layout.unpadded(case.maps, BATCH, "meta")
        memory = Pyramid(torch.empty(BATCH, layout.num_tokens, DIM), layout)
        objects = Queries(torch.empty(BATCH, NUM_OBJECTS, DIM), torch.empty(BATCH, NUM_OBJECTS, 4))
        queries = objects if case.role == Role.DECODER else memory.as_queries()
        with context("(on the meta device: do not read tensor values with item(), tolist() or if)"):
            output = attention(queries, memory)
    require(
        output.device.type == "meta", f"the output is on {output.device}, expected meta: create tensors on its device"
    )
    require(
        output.shape == queries.tokens.shape, f"shape {tuple(output.shape)}, expected {tuple(queries.tokens.shape)}"
    )
