"""Dotted config keys and values as run names and tables show them: `points` for `model.encoder.attention.points`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attnzoo.errors import as_yaml


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings with their dotted keys; an empty mapping has none."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from flatten(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def shorten_keys(variants: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The variants (full key -> value) with each key replaced by its shortest unambiguous suffix.

    Keys with the same suffix and the same value in every variant share one short key. A trailing `.name` is dropped:
    `model.encoder.attention.name` becomes `attention`.
    """
    keys = list(dict.fromkeys(key for variant in variants for key in variant))
    short = {key: _shortest_suffix(key, keys, variants) for key in keys}
    return [{short[key]: value for key, value in variant.items()} for variant in variants]


def format_value(value: Any) -> str:
    """A value as run names and tables show it; different numbers stay different."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, (list, tuple)):
        return ",".join(map(format_value, value))
    return as_yaml(value) if isinstance(value, Mapping) else str(value)


def _shortest_suffix(key: str, keys: Sequence[str], variants: Sequence[Mapping[str, Any]]) -> str:
    parts = _split_key(key)
    for length in range(1, len(parts) + 1):
        suffix = parts[-length:]
        others = [other for other in keys if other != key and _split_key(other)[-length:] == suffix]
        if all(variant.get(key, ...) == variant.get(other, ...) for variant in variants for other in others):
            return ".".join(suffix)
    return key


def _split_key(key: str) -> list[str]:
    parts = key.split(".")
    return parts[:-1] if parts[-1] == "name" and len(parts) > 1 else parts
