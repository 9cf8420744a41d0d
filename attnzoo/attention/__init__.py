"""The attentions. Every module of this package is imported here, so adding a file adds an attention."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from attnzoo.attention.base import ATTENTIONS, Attention, register
from attnzoo.attention.plugins import load_plugin
from attnzoo.attention.recording import Trace, record
from attnzoo.errors import UserError
from attnzoo.geometry import Slot

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

names = ATTENTIONS.names


def build(name: str, slot: Slot, /, *, where: str = "", **options: Any) -> Attention:
    """The attention `name` for `slot`; `where` is the place named in messages, such as a key of a file.

    Raises UserError for an unknown name, a role it cannot stand in, and an option it does not take.
    """
    _check_role(name, slot, where)
    attention: Attention = ATTENTIONS.build(name, slot, where=where, **options)
    return attention


def build_block(block: Mapping[str, Any], slot: Slot, *, where: str = "") -> Attention:
    """The attention that a block `{name: …, option: …}` of a config describes. Raises UserError as `build` does."""
    _check_role(block["name"], slot, where)
    attention: Attention = ATTENTIONS.build_block(block, slot, where=where)
    return attention


def _check_role(name: str, slot: Slot, where: str) -> None:
    kind = ATTENTIONS.get(name, where)
    if slot.role not in kind.roles:
        able = [other for other in names() if slot.role in ATTENTIONS.get(other).roles]
        raise UserError(
            f"attention {name!r} cannot stand in the {slot.role} "
            f"(it stands in: {', '.join(sorted(kind.roles))}; the {slot.role} takes: {', '.join(able)})",
            key=f"{where}.name" if where else (),
        ).at(where)


__all__ = ["ATTENTIONS", "Attention", "Trace", "build", "build_block", "load_plugin", "names", "record", "register"]
