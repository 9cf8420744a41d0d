"""Renaming the tensors of a state dict by a table of patterns."""

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from attnzoo.errors import UserError

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A regular expression for the start of a name, and what takes its place."""


def rename(
    state: Mapping[str, Tensor], rules: Sequence[Rule], *, layers: int, ignore: tuple[str, ...], source: str
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


def _rename(name: str, rules: Sequence[Rule]) -> str | None:
    for pattern, replacement in rules:
        renamed, found = re.subn(rf"\A(?:{pattern})", replacement, name)
        if found:
            return renamed
    return None
