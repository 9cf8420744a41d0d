"""Laying one source of settings over another, checked against the schema, each value knowing where it came from."""

import copy
import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnzoo.errors import UserError, did_you_mean, unknown
from attnzoo.registry import fits, format_type, plain
from attnzoo.schema.fields import FINITE, Range

Schema = type[Any]  # a dataclass of the schema


@dataclass(frozen=True)
class Layer:
    """Settings of one source: `where` is what messages call it, `content` nests like the schema."""

    where: str
    content: Mapping[str, Any]


class Settings:
    """The schema's defaults with layers laid over them, the last one winning.

    Mappings are merged and lists replaced. In a named block another `name` drops the options of the old one, and so it
    does in the options of a backbone; an empty mapping clears one with free keys, all but a name; a grid of a sweep
    replaces the grid below it.
    """

    def __init__(self, schema: Schema):
        self.schema = schema
        self.values = copy.deepcopy(_defaults(typing.cast(Any, schema)))
        self._sources: dict[str, str] = {}  # full key -> the layer that set it, in the order in which they were set

    def lay(self, layer: Layer) -> None:
        """Merge one layer. Raises UserError for an unknown key, a value of a wrong type or a word not allowed."""
        self._merge(self.schema, self.values, layer.content, "", layer.where)

    def build(self) -> Any:
        """An instance of the schema, `${…}` resolved. Raises UserError for values that do not fit or out of range."""
        built = _typed(self.schema, self._resolved())
        for key, number, allowed in _numbers(built, ""):
            if number not in allowed:
                raise UserError(f"{self.where(key)}{key} = {number}: expected {allowed}")
        return built

    def _resolved(self) -> dict[str, Any]:
        if "${" not in repr(self.values):
            return self.values
        try:
            resolved = OmegaConf.to_container(OmegaConf.create(self.values), resolve=True)
        except OmegaConfBaseException as error:
            key = error.full_key or ""
            raise UserError(f"{self.where(key)}{key}: {str(error).splitlines()[0]}") from None
        values = typing.cast(dict[str, Any], resolved)
        for key, hint, value in _fields(self.schema, values, ""):
            _check(hint, key, value, self.where(key).removesuffix(": "))
        return values

    def where(self, *keys: str) -> str:
        """The source of that of `keys` which was set last, as the beginning of a message.

        Where none was set, that of the nearest key above the first.
        """
        last = max((key for key in keys if key in self._sources), key=list(self._sources).index, default=keys[0])
        while last and last not in self._sources:
            last = last.rpartition(".")[0]
        return f"{self._sources[last]}: " if last else ""

    def _note(self, key: str, where: str) -> None:
        self._sources.pop(key, None)
        self._sources[key] = where

    def _merge(
        self, schema: Schema, values: dict[str, Any], update: Mapping[str, Any], prefix: str, where: str
    ) -> None:
        fields = {field.name: field for field in dataclasses.fields(schema)}
        for name, field in fields.items():
            owner = field.metadata.get("options_of")
            if owner and update.get(owner, values[owner]) != values[owner]:
                values[name] = {}
        for name, new in update.items():
            if name not in fields:
                raise _unknown_key(self.schema, f"{prefix}{name}", fields, where)
            key, field, old = f"{prefix}{name}", fields[name], values[name]
            _check(field.type, key, new, where)
            if field.metadata.get("filled") and new == []:
                raise UserError(f"{where}: {key} = []: expected at least one number")
            self._note(key, where)
            if dataclasses.is_dataclass(field.type):
                self._merge(typing.cast(Schema, field.type), old, new, f"{key}.", where)
            elif isinstance(old, dict):
                for option in new:
                    self._note(f"{key}.{option}", where)
                values[name] = _laid_mapping(field.metadata, old, new, f"{where}: {key}")
            else:
                values[name] = new


def _laid_mapping(metadata: Mapping[str, Any], old: dict[str, Any], new: dict[str, Any], where: str) -> dict[str, Any]:
    """One mapping with free keys over another, as its field in the schema wants it."""
    if "options_of" in metadata:
        return _laid(old, new)
    if "named_block" not in metadata:
        return (old if new and "replaced" not in metadata else {}) | new
    if not isinstance(name := new.get("name", old["name"]), str):
        raise UserError(f"{where}.name = {name!r}: expected str")
    return (old if new and name == old["name"] else {"name": old["name"]}) | new


def _laid(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Options of any depth, keys nested or dotted; another `name` drops what stood beside the old one, `{}` clears."""
    result = dict(old) if new else {}
    for key, value in new.items():
        head, dot, rest = key.partition(".")
        value = {rest: value} if dot else value
        if isinstance(value, Mapping):
            below = result.get(head)
            below = below if isinstance(below, Mapping) else {}
            renamed = "name" in below and value.get("name", below["name"]) != below["name"]
            value = _laid({} if renamed else below, value)
        result[head] = value
    return result


@functools.cache
def _defaults(schema: Schema) -> dict[str, Any]:
    """The schema's defaults as YAML would hold them; never to be changed."""
    return dataclasses.asdict(schema())


def _fields(schema: Schema, values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """The full key, type and value of everything in `values` that is no block of the schema."""
    for field in dataclasses.fields(schema):
        key, value = f"{prefix}{field.name}", values[field.name]
        if dataclasses.is_dataclass(field.type):
            yield from _fields(typing.cast(Schema, field.type), value, f"{key}.")
        else:
            yield key, field.type, value


def _typed(hint: Any, value: Any) -> Any:
    """A value that fits `hint`, made of it: blocks become dataclasses, integers floats where these are expected."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        schema = typing.cast(Schema, hint)
        return schema(**{field.name: _typed(field.type, value[field.name]) for field in dataclasses.fields(schema)})
    if origin in (typing.Union, types.UnionType):
        return _typed(next(arg for arg in args if fits(value, arg)), value)
    if origin is list:
        return [_typed(args[0], member) for member in value]
    if origin is dict:
        return {name: _typed(args[1], member) for name, member in value.items()}
    if hint is Any:
        return plain(value)
    return float(value) if hint is float else value


def nested(schema: Schema, key: str, value: Any) -> dict[str, Any]:
    """`a.b.c` and a value as mappings in each other; below a mapping with free keys the rest is one key."""
    head, _, rest = key.partition(".")
    if not rest:
        return {head: value}
    hint = {field.name: field.type for field in dataclasses.fields(schema)}.get(head)
    if hint is not None and dataclasses.is_dataclass(hint):
        return {head: nested(typing.cast(Schema, hint), rest, value)}
    return {head: {rest: value}}


def leaves(schema: Schema, prefix: str = "") -> Iterator[str]:
    """The full keys of a schema that hold a value rather than further keys."""
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(field.type):
            yield from leaves(typing.cast(Schema, field.type), f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def _check(hint: Any, key: str, value: Any, where: str) -> None:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: {key} = {value!r}: expected keys and values")
    elif isinstance(value, str) and "${" in value and typing.get_origin(hint) is not dict:
        return  # its value is checked when it is resolved
    elif typing.get_origin(hint) is typing.Literal and isinstance(value, str):
        if value not in typing.get_args(hint):
            raise unknown(key, value, typing.get_args(hint), where)
    elif typing.get_origin(hint) is dict and fits(value, dict[str, Any]):
        for name, member in value.items():
            _check(typing.get_args(hint)[1], f"{key}.{name}", member, where)
    elif not fits(value, hint):
        raise UserError(f"{where}: {key} = {value!r}: expected {format_type(hint)}")


def _unknown_key(schema: Schema, key: str, siblings: Mapping[str, Any], where: str) -> UserError:
    """Suggests a sibling, or a key of the same last name elsewhere."""
    head, _, name = key.rpartition(".")
    prefix = f"{head}." if head else ""
    hint = did_you_mean(key, [f"{prefix}{sibling}" for sibling in siblings]) if did_you_mean(name, siblings) else ""
    elsewhere = [leaf for leaf in leaves(schema) if leaf.rpartition(".")[2] == name]
    if not hint and elsewhere:
        hint = f"; did you mean {elsewhere[0]!r}?"
    place = f" ({head} takes: {', '.join(siblings)})" if head else f" (allowed: {', '.join(siblings)})"
    return UserError(f"{where}: unknown key {key!r}{hint}{place}")


def _numbers(built: Any, prefix: str) -> Iterator[tuple[str, float, Range]]:
    """All numbers of an instance of the schema with their full keys and ranges."""
    for field in dataclasses.fields(built):
        value, key = getattr(built, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{key}.")
        else:
            within = field.metadata.get("range", FINITE)
            yield from ((place, member, within) for place, member in _members(value, key))


def _members(value: Any, key: str) -> Iterator[tuple[str, float]]:
    """The numbers in a value, in lists and mappings too, with their keys."""
    if isinstance(value, Mapping):
        for name, member in value.items():
            yield from _members(member, f"{key}.{name}")
    elif isinstance(value, (list, tuple)):
        for member in value:
            yield from _members(member, key)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key, value
