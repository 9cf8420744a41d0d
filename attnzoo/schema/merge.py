"""Schema-checked merging of config layers that remembers which layer set each key."""

import copy
import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from attnzoo.errors import UserError, as_yaml, did_you_mean, unknown
from attnzoo.registry import format_type, matches_type, to_plain
from attnzoo.schema.fields import FINITE, Range
from attnzoo.schema.interpolation import resolve

Schema = type[Any]  # a config dataclass


@dataclass(frozen=True)
class ConfigLayer:
    """Values from one source, nested as in the schema. `source`, a file or the command line, is named in messages.

    `named_by` is the key that selected the layer, such as model.preset; what set that key is named too.
    """

    source: str
    values: Mapping[str, Any]
    named_by: str = ""


class ConfigBuilder:
    """Merges layers over the defaults of a schema; the last one wins.

    Mappings are merged, lists replaced. Another `name` drops the old options of a named block or a backbone. `{}`
    clears a mapping with free keys, but not the name of a block. A sweep's grid and zip are replaced as a whole.

    `find_option` gives the full keys of the options of a name, for hints on unknown keys: it is called with the values.
    Every UserError has the key at fault, and the source that set it in front of its message.
    """

    def __init__(self, schema: Schema, find_option: Callable[[Mapping[str, Any], str], list[str]] | None = None):
        self.schema = schema
        self.values: dict[str, Any] = copy.deepcopy(_defaults(typing.cast(Any, schema)))
        self._find_option = lambda name: find_option(self.values, name) if find_option else []
        self._sources: dict[str, str] = {}  # full key -> source, in the order in which they were set
        self._named_by: dict[str, str] = {}  # source -> key that selected it

    def merge(self, layer: ConfigLayer) -> None:
        """Merge one layer. Raises UserError for an unknown key, a wrong type or a choice that is not allowed."""
        if layer.named_by:
            self._named_by[layer.source] = layer.named_by
        try:
            self._merge(self.schema, self.values, layer.values, "", layer.source)
        except UserError as error:
            raise error.at(layer.source) from None

    def build(self) -> Any:
        """An instance of the schema, `${…}` resolved. Raises UserError for a wrong type or a number out of range."""
        try:
            config = _convert(self.schema, self._resolved())
            for key, number, allowed in _numbers(config, ""):
                if number not in allowed:
                    raise UserError(f"{key} = {as_yaml(number)}: expected {allowed}", key=key)
        except UserError as error:
            raise self.locate(error) from None
        return config

    def locate(self, error: UserError) -> UserError:
        """The error prefixed with the `source` of its keys."""
        return error.at(self.source(*error.keys))

    def source(self, *keys: str) -> str:
        """What set the last of the keys, else the nearest parent key of the first; "" for a default."""
        order = list(self._sources)
        known = sorted((key for key in order if key in keys), key=lambda key: order.index(self._selector(key)))
        key = known[-1] if known else next(iter(keys), "")
        while key and key not in self._sources:
            key = key.rpartition(".")[0]
        if not key:
            return ""
        selector = self._selector(key)
        return self._sources[key] if selector == key else f"{self._sources[selector]}: {self._sources[key]}"

    def _selector(self, key: str) -> str:
        """The key that selected what set `key`; `key` itself if it was set directly."""
        selector = self._named_by.get(self._sources[key], key)
        return selector if selector in self._sources else key

    def _resolved(self) -> dict[str, Any]:
        if "${" not in repr(self.values):
            return self.values
        values = resolve(self.values)
        for key, hint, value in _leaves(self.schema, values, ""):
            _check(hint, key, value, resolved=True)
        return values

    def _merge(self, schema: Schema, values: dict[str, Any], new: Mapping[str, Any], prefix: str, source: str) -> None:
        fields = {field.name: field for field in dataclasses.fields(schema)}
        for name, field in fields.items():
            name_key = field.metadata.get("options_of")
            if name_key and new.get(name_key, values[name_key]) != values[name_key]:
                values[name] = {}
        for name, value in new.items():
            key = f"{prefix}{name}"
            if name not in fields:
                raise _unknown_key(self.schema, key, str(name), fields, self._find_option)
            field, old = fields[name], values[name]
            has_name = "named_block" in field.metadata or _has_name(field.type)
            if has_name and isinstance(value, str) and "${" not in value:
                message = f"{key} = {as_yaml(value)}: expected a mapping; did you mean {key}.name = {as_yaml(value)}?"
                raise UserError(message, key=key)
            _check(field.type, key, value)
            if field.metadata.get("non_empty") and value == []:
                raise UserError(f"{key} = []: expected at least one number", key=key)
            self._record_source(key, source)
            if dataclasses.is_dataclass(field.type):
                self._merge(typing.cast(Schema, field.type), old, value, f"{key}.", source)
            elif isinstance(old, dict) and isinstance(value, dict):
                for option in value:
                    self._record_source(f"{key}.{option}", source)
                values[name] = _merge_mapping(field.metadata, old, value, key)
            else:
                values[name] = value

    def _record_source(self, key: str, source: str) -> None:
        self._sources.pop(key, None)
        self._sources[key] = source


def _merge_mapping(metadata: Mapping[str, Any], old: dict[str, Any], new: dict[str, Any], key: str) -> dict[str, Any]:
    """Merge mappings with free keys; the metadata of their field selects how."""
    if "options_of" in metadata:
        return _merge_options(old, new)
    if "named_block" not in metadata:
        return (old if new and "replace" not in metadata else {}) | new
    if not isinstance(name := new.get("name", old["name"]), str):
        raise UserError(f"{key}.name = {as_yaml(name)}: expected str", key=f"{key}.name")
    return (old if new and name == old["name"] else {"name": old["name"]}) | new


def _merge_options(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested options, keys nested or dotted; another `name` drops the options next to it, `{}` clears all."""
    result = dict(old) if new else {}
    for key, value in new.items():
        head, dot, rest = key.partition(".")
        value = {rest: value} if dot else value
        if isinstance(value, Mapping):
            below = result.get(head)
            below = below if isinstance(below, Mapping) else {}
            renamed = "name" in below and value.get("name", below["name"]) != below["name"]
            value = _merge_options({} if renamed else below, value)
        result[head] = value
    return result


@functools.cache
def _defaults(schema: Schema) -> dict[str, Any]:
    """The schema's defaults as plain containers; not to be modified."""
    return dataclasses.asdict(schema())


def _leaves(schema: Schema, values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Full key, type and value of all keys that hold a value."""
    for field in dataclasses.fields(schema):
        key, value = f"{prefix}{field.name}", values[field.name]
        if dataclasses.is_dataclass(field.type):
            yield from _leaves(typing.cast(Schema, field.type), value, f"{key}.")
        else:
            yield key, field.type, value


def _convert(hint: Any, value: Any) -> Any:
    """A checked value converted to its type: mappings to dataclasses, ints to floats."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        schema = typing.cast(Schema, hint)
        return schema(**{field.name: _convert(field.type, value[field.name]) for field in dataclasses.fields(schema)})
    if origin in (typing.Union, types.UnionType):
        return _convert(next(arg for arg in args if matches_type(value, arg)), value)
    if origin is list:
        return [_convert(args[0], item) for item in value]
    if origin is dict:
        return {name: _convert(args[1], item) for name, item in value.items()}
    if hint is Any:
        return to_plain(value)
    return float(value) if hint is float else value


def nest_key(schema: Schema, key: str, value: Any) -> dict[str, Any]:
    """`{"a": {"b": value}}` for the key `a.b`; inside a mapping with free keys the rest stays one key."""
    head, _, rest = key.partition(".")
    if not rest:
        return {head: value}
    hint = {field.name: field.type for field in dataclasses.fields(schema)}.get(head)
    if hint is not None and dataclasses.is_dataclass(hint):
        return {head: nest_key(typing.cast(Schema, hint), rest, value)}
    return {head: {rest: value}}


def named_blocks(config: Any, prefix: str = "") -> Iterator[tuple[Any, str, str]]:
    """All named blocks of a config: the dataclass that holds it, its field there, its full key."""
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from named_blocks(value, f"{key}.")
        elif "named_block" in field.metadata:
            yield config, field.name, key


def _check(hint: Any, key: str, value: Any, resolved: bool = False) -> None:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{key} = {as_yaml(value)}: expected a mapping", key=key)
    elif not resolved and isinstance(value, str) and "${" in value and typing.get_origin(hint) is not dict:
        return  # its value is checked when it is resolved
    elif typing.get_origin(hint) is typing.Literal and isinstance(value, str):
        if value not in typing.get_args(hint):
            raise UserError(str(unknown(key, value, typing.get_args(hint))), key=key)
    elif typing.get_origin(hint) is dict and matches_type(value, dict[str, Any]):
        for name, item in value.items():
            _check(typing.get_args(hint)[1], f"{key}.{name}", item, resolved)
    elif not matches_type(value, hint):
        raise UserError(f"{key} = {as_yaml(value)}: expected {format_type(hint)}", key=key)


def _has_name(hint: Any) -> bool:
    """Whether this is a block that is told by its `name`, such as the optimizer."""
    return dataclasses.is_dataclass(hint) and any(field.name == "name" for field in dataclasses.fields(hint))


def _unknown_key(
    schema: Schema, key: str, name: str, siblings: Mapping[str, Any], find_option: Callable[[str], list[str]]
) -> UserError:
    """The error for the unknown key `name` at `key`, with a suggestion: the same name elsewhere, or a sibling."""
    if "." in name and key == f"sweep.{name}":
        return UserError(f"unknown key {key!r}; swept keys are in sweep.grid: {{{name}: […]}}", key=key)
    if "." in name:
        head, _, rest = name.partition(".")
        nested = f"{head}: {{{rest.replace('.', ': {')}: …{'}' * (rest.count('.') + 1)}"
        return UserError(f"unknown key {key!r}; keys of a file are nested, not dotted: {nested}", key=key)
    head = key.rpartition(".")[0]
    allowed = f"allowed in {head}" if head else "allowed"
    elsewhere = [other for other in _keys(schema, "") if other.rpartition(".")[2] == name]
    if not elsewhere and not did_you_mean(name, siblings, cutoff=0.8):
        elsewhere = find_option(name)
    hint = f"; did you mean {' or '.join(map(repr, elsewhere[:3]))}?" if elsewhere else ""
    if not hint and did_you_mean(name, siblings):
        hint = did_you_mean(key, [f"{head}.{sibling}" if head else sibling for sibling in siblings])
    return UserError(f"unknown key {key!r}{hint} ({allowed}: {', '.join(siblings)})", key=key)


def _keys(schema: Schema, prefix: str) -> Iterator[str]:
    """All full keys of a schema, of blocks too."""
    for field in dataclasses.fields(schema):
        yield f"{prefix}{field.name}"
        if dataclasses.is_dataclass(field.type):
            yield from _keys(typing.cast(Schema, field.type), f"{prefix}{field.name}.")


def _numbers(config: Any, prefix: str) -> Iterator[tuple[str, float, Range]]:
    """Full key, number and allowed range of all numbers in an instance of the schema."""
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{key}.")
        else:
            allowed = field.metadata.get("range", FINITE)
            yield from ((number_key, number, allowed) for number_key, number in _numbers_in(value, key))


def _numbers_in(value: Any, key: str) -> Iterator[tuple[str, float]]:
    """The numbers in a value, in lists and mappings too, with their keys."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _numbers_in(item, f"{key}.{name}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers_in(item, key)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key, value
