"""Resolves OmegaConf's interpolations `${…}`, with a limit: some bytes of them may stand for gigabytes."""

import re
from collections.abc import Mapping
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnzoo.errors import UserError, describe
from attnzoo.schema.yaml12 import MAX_VALUES, NO_TEXT, TEXT_OF_VALUE, is_text

REFERENCE = re.compile(r"\$\{([^${}]*)(?=(\$?))")  # followed by another, of which it is the name or an argument
BY_NAME = ("oc.select", "oc.dict.keys", "oc.dict.values")  # resolvers that are given the key of a node
SEPARATOR = re.compile(r"[:,\s\"'()]+")


def resolve(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with all interpolations resolved.

    Raises UserError, with its key, for one that cannot be, that contains itself, or that leads to more than MAX_VALUES
    values; and for one whose result is no text.
    """
    _Sizes(values).check()
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(dict(values)), resolve=True)
    except Exception as error:  # resolvers raise anything
        key = (error.full_key if isinstance(error, OmegaConfBaseException) else "") or ""
        raise UserError(f"{key or 'interpolation'}: {describe(error)}", key=key) from None
    result = cast(dict[str, Any], resolved)
    for key, value in result.items():
        if not _is_text(value):
            raise UserError(f"{key}: an interpolation gives {NO_TEXT}", key=key)
    return result


def _is_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_text, value.values()))
    if isinstance(value, list):
        return all(map(_is_text, value))
    return not isinstance(value, str) or is_text(value)


class _Sizes:
    """The sizes in values of what interpolations stand for, found without resolving them; too high rather than low."""

    def __init__(self, values: Mapping[str, Any]):
        self._root = values
        self._known: dict[tuple[str, ...], int] = {}

    def check(self) -> None:
        """Raise UserError for the first key that leads to more than MAX_VALUES values, or contains itself."""
        for key in self._root:
            if self._size((key,), self._root[key]) > MAX_VALUES:
                message = f"interpolations contain themselves, or lead to more than {MAX_VALUES:,} values"
                raise UserError(f"{key}: {message}", key=key)

    def _size(self, path: tuple[str, ...], value: Any) -> int:
        if path in self._known:
            return self._known[path]
        self._known[path] = MAX_VALUES + 1  # for what contains itself
        if isinstance(value, Mapping):
            size = 1 + sum(self._size((*path, str(key)), item) for key, item in value.items())
        elif isinstance(value, list):
            size = 1 + sum(self._size((*path, str(index)), item) for index, item in enumerate(value))
        else:
            size = 1 + (len(value) // TEXT_OF_VALUE + self._references(path, value) if isinstance(value, str) else 0)
        self._known[path] = min(size, MAX_VALUES + 1)
        return self._known[path]

    def _references(self, path: tuple[str, ...], text: str) -> int:
        size = 0
        for body, nested in REFERENCE.findall(text):
            *others, last = SEPARATOR.split(body)
            is_open = bool(nested) and (bool(last) or not others or others[0] in BY_NAME)
            size += sum(self._referred(path, name) for name in others) + self._referred(path, last, is_open)
        return size

    def _referred(self, path: tuple[str, ...], name: str, is_open: bool = False) -> int:
        """The size of the node that is named, 0 without one.

        `is_open`: the rest of the name is an interpolation, and the size that of what holds the node.
        """
        name = name.replace("[", ".").replace("]", "")
        below = name.lstrip(".")
        start = path[: max(len(path) - (len(name) - len(below)), 0)] if below != name else ()
        value: Any = self._root
        found: tuple[str, ...] = ()
        for part in (*start, *filter(None, below.split("."))):
            items = dict(enumerate(value)) if isinstance(value, list) else value
            named = {str(key): item for key, item in items.items()} if isinstance(items, Mapping) else {}
            if part not in named:
                return self._size(found, value) if is_open else 0
            value, found = named[part], (*found, part)
        return self._size(found, value) if found or is_open else 0
