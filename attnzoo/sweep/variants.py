"""The named variants of a sweep: those of sweep.variants, or the base and each change of sweep.one_at_a_time."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from attnzoo.config.experiment import SweepConfig
from attnzoo.errors import UserError
from attnzoo.schema.keys import flatten, format_value, shorten_keys
from attnzoo.schema.merge import Schema

BASE = "base"
MAX_NAME = 200  # bytes; file systems allow 255, and the seed and a digest follow


def folder_name(name: str) -> str:
    """The name of a variant as part of the name of a folder; a long one is cut, and ends with its digest."""
    name = name.replace("/", "_").replace(" ", "")
    encoded = name.encode()
    if len(encoded) <= MAX_NAME:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[: MAX_NAME // 2].decode(errors='ignore')}-{digest}"


def named_variants(sweep: SweepConfig, schema: Schema) -> dict[str, dict[str, Any]]:
    """The name of each variant and its overrides, by full keys; none if the sweep names none.

    Raises UserError if a variant sets a key twice, and if both blocks are set.
    """
    if sweep.variants and sweep.one_at_a_time:
        keys = ("sweep.variants", "sweep.one_at_a_time")
        raise UserError("sweep: expected either variants or one_at_a_time, not both", key=keys)
    if sweep.one_at_a_time:
        return {BASE: {}} | _one_at_a_time(sweep.one_at_a_time)
    return {name: _by_full_keys(schema, name, block) for name, block in sweep.variants.items()}


def _one_at_a_time(block: Mapping[str, list[Any]]) -> dict[str, dict[str, Any]]:
    changes = [{key: value} for key, values in block.items() for value in values]
    labels = shorten_keys([dict(flatten(change)) or change for change in changes])
    names = ["-".join(f"{key}={format_value(value)}" for key, value in short.items()) for short in labels]
    names = [folder_name(name) for name in names]
    if duplicates := [name for name, count in Counter(names).items() if count > 1]:
        key = f"sweep.one_at_a_time.{next(iter(changes[names.index(duplicates[0])]))}"
        raise UserError(f"sweep.one_at_a_time: {duplicates[0]} is listed twice", key=key)
    return dict(zip(names, changes, strict=True))


def _by_full_keys(schema: Schema, name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    items = list(_items(schema, block, ""))
    if duplicates := [key for key, count in Counter(key for key, _ in items).items() if count > 1]:
        key = f"sweep.variants.{name}"
        raise UserError(f"{key}: {duplicates[0]!r} is set twice", key=f"{key}.{duplicates[0]}")
    return dict(items)


def _items(schema: Schema, block: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """The full keys that a block sets, nested or dotted, and their values; not those in free-form mappings."""
    for key, value in block.items():
        if isinstance(value, Mapping) and _is_block(schema, f"{prefix}{key}"):
            yield from _items(schema, value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_block(schema: Schema, key: str) -> bool:
    kind: Any = schema
    for part in key.split("."):
        fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        kind = {field.name: field.type for field in fields}.get(part)
    return dataclasses.is_dataclass(kind)
