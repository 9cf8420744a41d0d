"""Rename the keys of a state dict by a table of regular expressions."""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from attnzoo.errors import UserError

RenameRule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A regular expression for the start of a key, and its replacement."""


def rename_keys(
    state: Mapping[str, Tensor],
    rules: Sequence[RenameRule],
    *,
    source: str,
    layers: int = 1,
    ignore: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """`state` with each key renamed by the first rule that matches.

    A `*` in a new key is replaced by every decoder layer, 0 … `layers` - 1, for heads that they share. Keys that start
    with one of `ignore` are dropped. Raises UserError for a key that no rule matches; `source` names the origin of the
    keys in messages.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.startswith(ignore):
            continue
        new_key = _rename(key, rules)
        if new_key is None:
            raise UserError(f"{source}: unexpected key {key!r} for this configuration")
        for layer in range(layers if "*" in new_key else 1):
            renamed[new_key.replace("*", str(layer))] = tensor
    return renamed


def merge_qkv(state: Mapping[str, Tensor], merged_name: str, *, source: str) -> dict[str, Tensor]:
    """Merge `….q_proj.…`, `….k_proj.…` and `….v_proj.…` into one tensor, with `merged_name` in place of `.q_proj.`.

    Raises UserError where one is missing; `source` names the origin of the keys in messages.
    """
    merged: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if ".q_proj." in key:
            projections = [key.replace(".q_proj.", f".{name}_proj.") for name in "qkv"]
            missing = [name for name in projections if name not in state]
            if missing:
                raise UserError(f"{source}: missing key {missing[0]} ({key} is present)")
            merged[key.replace(".q_proj.", merged_name)] = torch.cat([state[name] for name in projections])
        elif ".k_proj." not in key and ".v_proj." not in key:
            merged[key] = tensor
    return merged


def _rename(key: str, rules: Sequence[RenameRule]) -> str | None:
    for pattern, replacement in rules:
        new_key, count = re.subn(rf"\A(?:{pattern})", replacement, key)
        if count:
            return new_key
    return None
