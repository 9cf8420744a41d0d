"""Type hints of config keys and options as JSON Schema (draft 7), and as text."""

import dataclasses
import types
import typing
from typing import Any

from attnzoo.registry import format_type
from attnzoo.schema.fields import COUNT, FINITE, Range

Json = dict[str, Any]

INTERPOLATION = r"\$\{"  # a string with `${key}` may stand for any value
NAMES = {bool: "boolean", int: "integer", float: "number", str: "string", types.NoneType: "null"}


def type_schema(hint: Any, allowed: Range = FINITE) -> Json:
    """The JSON Schema of the YAML values that `registry.matches_type` accepts, numbers in the range `allowed`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if hint in NAMES:
        return {"type": NAMES[hint]} | (_range(allowed) if hint in (int, float) else {})
    if origin is typing.Literal:
        return {"enum": list(args)}
    if origin in (typing.Union, types.UnionType):
        return _union([type_schema(arg, allowed) for arg in args])
    if origin is tuple and args[-1:] != (...,):
        items = [type_schema(arg, allowed) for arg in args]
        return {"type": "array", "items": items, "minItems": len(args), "maxItems": len(args)}
    if origin in (list, tuple):
        return {"type": "array", "items": type_schema(args[0], allowed)}
    if origin is dict:
        return {"type": "object", "additionalProperties": or_interpolation(type_schema(args[1], allowed))}
    raise TypeError(f"{hint}: not a type of config values")


def or_interpolation(schema: Json) -> Json:
    """The schema, or a string that names another key, `${train.steps}`."""
    kinds = schema.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if not schema or "string" in kinds:
        return schema
    if kinds and not {"array", "object"} & set(kinds) and "enum" not in schema:
        return schema | {"type": [*kinds, "string"], "pattern": INTERPOLATION}
    return {"anyOf": [schema, {"type": "string", "pattern": INTERPOLATION}]}


def type_text(hint: Any, allowed: Range | None = None) -> str:
    """The type for readers: `int, at least 1`."""
    text = format_type(hint)
    if allowed is not None and allowed.high == COUNT.high:  # a guard against typing errors, no news for readers
        allowed = dataclasses.replace(allowed, high=None)
    return text if allowed is None else f"{text}, {str(allowed).removeprefix('a number ')}"


def _range(allowed: Range) -> Json:
    limits: Json = {}
    if allowed.low is not None:
        limits["exclusiveMinimum" if allowed.open_low else "minimum"] = allowed.low
    if allowed.high is not None:
        limits["exclusiveMaximum" if allowed.open_high else "maximum"] = allowed.high
    return limits


def _union(schemas: list[Json]) -> Json:
    if all(isinstance(schema.get("type"), str) and schema["type"] not in ("array", "object") for schema in schemas):
        merged: Json = {"type": [schema["type"] for schema in schemas]}
        for schema in schemas:
            merged |= {key: value for key, value in schema.items() if key != "type"}
        return merged
    return {"anyOf": schemas}
