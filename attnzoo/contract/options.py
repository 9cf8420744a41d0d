"""The clause on options."""

import itertools
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from attnzoo.attention import ATTENTIONS
from attnzoo.contract.cases import OBJECTS, Case, pyramid, roles
from attnzoo.contract.expect import context, require
from attnzoo.errors import UserError
from attnzoo.geometry import Role

GROW = 8  # pixels: on small maps a window, or its shift, can be without effect


def options(case: Case) -> None:
    """Every option changes something: parameters, output or `flops`, in some role, perhaps beside another option.

    Other values are tried for bool, int, float and Literal; options of other types are not tried. A value is refused by
    a UserError in the constructor, or works.
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
    """Whether other values of an option have an effect, for those that can be built, in this role and then others."""
    for role in sorted(roles(case.name), key=lambda role: role != case.role):
        here = replace(case, role=role)
        for beside in ({}, *_settings(here, base, name)):
            usual = _behaviour(here, {**base, **beside})
            for value in _alternatives_of(case, base, name) if usual else ():
                changed = _behaviour(here, {**base, **beside, name: value})
                if changed:
                    yield not _same(changed, usual)


def _settings(case: Case, base: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Other options beside which an option may have an effect: each value of bool and Literal ones."""
    for other in ATTENTIONS.options(case.name):
        if other != name and other not in base:
            for value in _alternatives_of(case, base, other):
                if isinstance(value, (bool, str)):
                    yield {other: value}


def _alternatives_of(case: Case, base: Mapping[str, Any], name: str) -> list[Any]:
    constructor: Any = ATTENTIONS.get(case.name)
    value = base.get(name, ATTENTIONS.options(case.name)[name].default)
    found = _alternatives(typing.get_type_hints(constructor.__init__)[name], value)
    return [other for other in found if (type(other), other) != (type(value), value)]


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


def _behaviour(case: Case, chosen: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Parameters, outputs and cost with these options; None if the constructor refuses them."""
    case = replace(case, options=tuple(chosen.items()))
    memory = pyramid(tuple((h + GROW, w + 2 * GROW) for h, w in case.maps))
    queries = case.queries(memory)
    try:
        with context(f"(options: {dict(chosen)}: refuse values out of range by UserError in the constructor)"):
            attention = case.build(layer=1)
            outputs = [attention(queries, memory)]
            torch.manual_seed(0)
            outputs.append(attention.train()(queries, memory))
            cost = attention.flops(OBJECTS if case.role == Role.DECODER else memory.layout, memory.layout)
    except UserError:
        return None
    return attention.state_dict(), outputs, cost


def _same(one: tuple[Any, ...] | None, other: tuple[Any, ...] | None) -> bool:
    assert one is not None
    assert other is not None
    (state, outputs, cost), (other_state, other_outputs, other_cost) = one, other
    return (
        cost == other_cost
        and state.keys() == other_state.keys()
        and all(torch.equal(state[key], other_state[key]) for key in state)
        and all(map(torch.equal, outputs, other_outputs))
    )
