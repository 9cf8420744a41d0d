"""The clause on options."""

import itertools
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnzoo.attention import ATTENTIONS
from attnzoo.contract.cases import NUM_OBJECTS, Case, pyramid, roles
from attnzoo.contract.expect import context, require
from attnzoo.errors import UserError
from attnzoo.geometry import Role

MAP_GROWTH = 8  # pixels: on smaller maps a window, or its shift, may have no effect


def options(case: Case) -> None:
    """Every option affects parameters, output or `flops`, in some role and for some value of another option.

    Only options of type bool, int, float and Literal are varied. The constructor rejects invalid values with UserError.
    """
    base = dict(case.options)
    for name in ATTENTIONS.options(case.name):
        effects = list(_until_true(_effects(case, base, name)))
        require(
            not effects or effects[-1],
            f"{name} has no effect: other values give the same parameters, output and flops: use it, or remove it",
        )


def _until_true(values: Iterator[bool]) -> Iterator[bool]:
    for value in values:
        yield value
        if value:
            return


def _effects(case: Case, base: Mapping[str, Any], name: str) -> Iterator[bool]:
    """Yield for each alternative value that the constructor accepts whether it has an effect; this role comes first."""
    for role in sorted(roles(case.name), key=lambda role: role != case.role):
        role_case = replace(case, role=role)
        for others in ({}, *_other_options(role_case, base, name)):
            reference = _evaluate(role_case, {**base, **others})
            for value in _alternatives_of(case, base, name) if reference else ():
                changed = _evaluate(role_case, {**base, **others, name: value})
                if reference and changed:
                    yield not _equal(changed, reference)


def _other_options(case: Case, base: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Settings of one other option, bool or Literal, without which `name` may have no effect."""
    for other in ATTENTIONS.options(case.name):
        if other != name and other not in base:
            for value in _alternatives_of(case, base, other):
                if isinstance(value, (bool, str)):
                    yield {other: value}


def _alternatives_of(case: Case, base: Mapping[str, Any], name: str) -> list[Any]:
    constructor: Any = ATTENTIONS.get(case.name)
    value = base.get(name, ATTENTIONS.options(case.name)[name].default)
    candidates = _alternatives(typing.get_type_hints(constructor.__init__)[name], value)
    return [other for other in candidates if (type(other), other) != (type(value), value)]


def _alternatives(hint: Any, value: Any) -> list[Any]:
    """Values of a type to try instead of `value`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return list(itertools.chain.from_iterable(_alternatives(arg, value) for arg in args))
    if origin is typing.Literal:
        return list(args)
    number = value if isinstance(value, (int, float)) else 1
    if hint is bool:
        return [True, False]
    if hint is int:
        return [int(number) + 1, int(number) + 2, 2 * int(number), int(number) - 1, 1, 3]
    if hint is float:
        return [0.5, 0.5 * number, 1.0 + number]
    return []


class _Result(NamedTuple):
    state_dict: dict[str, Tensor]
    outputs: list[Tensor]  # in eval and in training mode
    flops: int


def _evaluate(case: Case, options: Mapping[str, Any]) -> _Result | None:
    """Build and run the attention with these options; None if the constructor rejects them."""
    case = replace(case, options=tuple(options.items()))
    memory = pyramid(tuple((h + MAP_GROWTH, w + 2 * MAP_GROWTH) for h, w in case.maps))
    queries = case.queries(memory)
    try:
        with context(f"(options: {dict(options)}: raise UserError in the constructor for values out of range)"):
            attention = case.build(layer=1)
            outputs = [attention(queries, memory)]
            torch.manual_seed(0)
            outputs.append(attention.train()(queries, memory))
            flops = attention.flops(NUM_OBJECTS if case.role == Role.DECODER else memory.layout, memory.layout)
    except UserError:
        return None
    return _Result(attention.state_dict(), outputs, flops)


def _equal(a: _Result, b: _Result) -> bool:
    return (
        a.flops == b.flops
        and a.state_dict.keys() == b.state_dict.keys()
        and all(torch.equal(tensor, b.state_dict[key]) for key, tensor in a.state_dict.items())
        and all(map(torch.equal, a.outputs, b.outputs))
    )
