"""Short names for the keys in which variants differ: `points` for `model.encoder.attention.points`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings with their dotted keys; an empty mapping has none."""
    if isinstance(value, Mapping):
        for name, member in value.items():
            yield from flatten(member, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def label(variants: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each variant's full keys (without nesting) as the shortest ends of keys that no other key shares.

    Keys with the same end and the same value in every variant share one label. The end `name` says too little, so the
    label of `model.encoder.attention.name` is `attention`.
    """
    keys = list(dict.fromkeys(key for variant in variants for key in variant))
    names = {key: _shortest(key, keys, variants) for key in keys}
    return [{names[key]: value for key, value in variant.items()} for variant in variants]


def text(value: Any) -> str:
    """A value as a run's name or a table shows it; other numbers have other texts."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, (list, tuple)):
        return ",".join(map(text, value))
    return str(value)


def _shortest(key: str, keys: Sequence[str], variants: Sequence[Mapping[str, Any]]) -> str:
    parts = _parts(key)
    for length in range(1, len(parts) + 1):
        end = parts[-length:]
        rivals = [other for other in keys if other != key and _parts(other)[-length:] == end]
        if all(variant.get(key, ...) == variant.get(rival, ...) for variant in variants for rival in rivals):
            return ".".join(end)
    return key


def _parts(key: str) -> list[str]:
    parts = key.split(".")
    return parts[:-1] if parts[-1] == "name" and len(parts) > 1 else parts
