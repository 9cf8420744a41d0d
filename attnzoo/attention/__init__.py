"""The attentions. Every module of this package is imported here, so adding a file adds an attention."""

import importlib
import pkgutil
from typing import Any

from attnzoo.attention.base import ATTENTIONS, Attention, register
from attnzoo.geometry import Site

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

names = ATTENTIONS.names


def build(name: str, site: Site, **options: Any) -> Attention:
    """The attention `name` for `site`; raises UserError for a wrong name, role or option."""
    raise NotImplementedError


__all__ = ["Attention", "build", "names", "register"]
