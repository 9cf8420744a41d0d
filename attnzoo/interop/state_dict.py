"""Renaming the tensors of a state dict by a table of patterns."""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from attnzoo.errors import UserError

RenameRule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A regular expression for the start of a name, and what takes its place."""


def rename_keys(
    state: Mapping[str, Tensor], rules: Sequence[RenameRule], *, layers: int, ignore: tuple[str, ...], source: str
) -> dict[str, Tensor]:
    """`state` under new names, each by the first rule that fits.

    A `*` in a new name stands for every decoder layer, 0 … `layers` - 1: a head that they share. Names that
    start with one of `ignore` are left out. Raises UserError for a name that no rule fits; `source` says
    whose names they are.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(ignore):
            continue
        ours = _rename(name, rules)
        if ours is None:
            raise UserError(f"{source}: the model described by this configuration has no tensor {name!r}")
        for layer in range(layers if "*" in ours else 1):
            renamed[ours.replace("*", str(layer))] = tensor
    return renamed


def merge_qkv(state: Mapping[str, Tensor], into: str, *, source: str) -> dict[str, Tensor]:
    """The projections of queries, keys and values (`….q_proj.…`) as the one matrix that we have (`into`).

    Raises UserError where one is missing; `source` says whose names they are.
    """
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".q_proj." in name:
            parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
            absent = [part for part in parts if part not in state]
            if absent:
                raise UserError(f"{source}: there is {name}, but no {absent[0]}")
            merged[name.replace(".q_proj.", into)] = torch.cat([state[part] for part in parts])
        elif ".k_proj." not in name and ".v_proj." not in name:
            merged[name] = tensor
    return merged


def _rename(name: str, rules: Sequence[RenameRule]) -> str | None:
    for pattern, replacement in rules:
        renamed, found = re.subn(rf"\A(?:{pattern})", replacement, name)
        if found:
            return renamed
    return None
