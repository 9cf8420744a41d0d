"""The attentions. All modules of this package are imported here, so that each file registers its attentions."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from attnzoo.attention.base import ATTENTIONS, Attention, register
from attnzoo.attention.plugins import load_accepted, load_plugin, source_hash
from attnzoo.attention.recording import Recording, record
from attnzoo.errors import UserError
from attnzoo.geometry import Slot

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

names = ATTENTIONS.names


def build(name: str, slot: Slot, /, *, where: str = "", **options: Any) -> Attention:
    """The attention `name` for `slot`; `where` prefixes error messages, e.g. a config key.

    Raises UserError for an unknown name, a role it does not support, and an invalid option.
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
    cls = ATTENTIONS.get(name, where)
    if slot.role not in cls.roles:
        supported = [other for other in names() if slot.role in ATTENTIONS.get(other).roles]
        raise UserError(
            f"attention {name!r} does not support role {slot.role} "
            f"(supported roles: {', '.join(sorted(cls.roles))}; attentions for {slot.role}: {', '.join(supported)})",
            key=f"{where}.name" if where else (),
        ).at(where)


__all__ = [
    "ATTENTIONS", "Attention", "Recording", "build", "build_block", "load_accepted", "load_plugin", "names", "record",
    "register", "source_hash",
]  # fmt: skip
