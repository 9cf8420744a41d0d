"""The JSON Schema (draft 7) of experiment files, with which editors complete and check them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import timm
from omegaconf import MISSING

from attnzoo.attention import ATTENTIONS, load_plugin
from attnzoo.config.experiment import PRESET_FAMILY, SCHEMAS
from attnzoo.data.build import registries
from attnzoo.models import presets
from attnzoo.models.vit.config import VitConfig
from attnzoo.reference.descriptions import field_comments, option_description, summary
from attnzoo.reference.types import Json, or_interpolation, type_schema
from attnzoo.registry import Registry, to_plain
from attnzoo.schema.fields import FINITE

DRAFT = "http://json-schema.org/draft-07/schema#"
DOTTED: Json = {r"\.": {}}  # pattern of keys that stand for nested ones
SWEPT = ("grid", "zip", "one_at_a_time")  # keys of `sweep` that map config keys to lists of values


def experiment_schema(plugins: Sequence[str] = ()) -> Json:
    """The JSON Schema of experiment files; `plugins`, files or modules, add their attentions.

    It accepts what `config.load` accepts of one file: types, ranges, choices, unknown keys and options. It does not
    check what depends on several keys or on base files. Raises UserError for a plugin that cannot be loaded.
    """
    for plugin in plugins:
        load_plugin(plugin)
    definitions: Json = {"attention": _block(ATTENTIONS), "vit_options": _object(VitConfig(), "", "", dotted=True)}
    for task, schema in SCHEMAS.items():
        datasets, augmentations = registries(schema().data)
        definitions |= {f"{task}_dataset": _block(datasets), f"{task}_augment": _block(augmentations)}
        keys, free = _dotted_keys(schema, f"#/definitions/{task}")
        definitions[f"{task}_overrides"] = _mapping(keys, {key: {} for key in free})
        lists = {key: {"type": "array", "items": reference} for key, reference in keys.items()}
        definitions[f"{task}_values"] = _mapping(lists, {key: {"type": "array"} for key in free})
        definitions[task] = _experiment(task, schema)
    tasks = {task: {"$ref": f"#/definitions/{task}"} for task in SCHEMAS}
    has_task, has_base = {"required": ["task"]}, {"required": ["base"]}
    cases = [
        {"if": has_task | {"properties": {"task": {"const": task}}}, "then": reference}
        for task, reference in tasks.items()
    ]
    cases.append({"if": {"not": {"anyOf": [has_task, has_base]}}, "then": tasks["detection"]})
    cases.append({"if": has_base | {"not": has_task}, "then": {"anyOf": list(tasks.values())}})
    return {
        "$schema": DRAFT,
        "title": "attnzoo experiment",
        "type": "object",
        "properties": {"task": {"enum": list(SCHEMAS)}},
        "allOf": cases,
        "definitions": definitions,
    }


def _experiment(task: str, schema: type[Any]) -> Json:
    result = _object(schema(), task, "")
    properties = result["properties"]
    properties["base"] = {
        "type": ["string", "array"],
        "items": {"type": "string"},
        "description": "files that this one extends, relative to it or to the experiments of the package",
    }
    sweep = properties["sweep"]["properties"]
    for key in SWEPT:
        comment = {"description": sweep[key]["description"]} if "description" in sweep[key] else {}
        sweep[key] = {"allOf": [{"$ref": f"#/definitions/{task}_values"}]} | comment
    sweep["variants"]["additionalProperties"] = {"$ref": f"#/definitions/{task}_overrides"}
    return result


def _object(defaults: Any, task: str, prefix: str, dotted: bool = False) -> Json:
    """A mapping with the fields of a config dataclass; `dotted`: keys may also stand for nested ones."""
    comments = field_comments(type(defaults))
    properties = {
        field.name: _field(field, getattr(defaults, field.name), task, f"{prefix}{field.name}", dotted)
        | ({"description": comments[field.name]} if comments[field.name] else {})
        for field in dataclasses.fields(defaults)
    }
    result = {"type": "object", "properties": properties, "additionalProperties": False}
    return result | ({"patternProperties": DOTTED} if dotted else {})


def _field(field: dataclasses.Field[Any], default: Any, task: str, key: str, dotted: bool) -> Json:
    if dataclasses.is_dataclass(field.type):
        nested = _object(default, task, f"{key}.", dotted)
        return nested | ({"allOf": _backbone_options()} if key == "model.backbone" else {})
    if "named_block" in field.metadata:
        name = {"data.dataset": f"{task}_dataset", "data.augment": f"{task}_augment"}.get(key, "attention")
        return {"allOf": [{"$ref": f"#/definitions/{name}"}], "default": default}
    result = type_schema(field.type, field.metadata.get("range", FINITE))
    if key == "model.preset":
        result = {"enum": [None, *presets.names(family=PRESET_FAMILY[task])] if PRESET_FAMILY[task] else [None]}
    if key == "model.backbone.name":
        result |= {"examples": [*presets.names(family="vit"), *timm.list_models("resnet*", exclude_filters="*.*")]}
    if field.metadata.get("non_empty"):
        result["minItems"] = 1
    return or_interpolation(result) | ({} if default == MISSING else {"default": to_plain(default)})


def _backbone_options() -> list[Json]:
    """Of this package's backbones; timm's models check their own options when they are built."""
    named = {"required": ["name"], "properties": {"name": {"enum": presets.names(family="vit")}}}
    return [{"if": named, "then": {"properties": {"options": {"$ref": "#/definitions/vit_options"}}}}]


def _block(registry: Registry[Any]) -> Json:
    """`{name: …, option: …}`: the options of that name, or without a name those of any."""
    names = registry.names()
    options = {name: _options(registry, name) for name in names}
    cases: list[Json] = [
        {
            "if": {"required": ["name"], "properties": {"name": {"const": name}}},
            "then": {"properties": {"name": {}, **options[name]}, "additionalProperties": False},
        }
        for name in names
    ]
    of_any: dict[str, list[Json]] = {}
    for schemas in options.values():
        for option, schema in schemas.items():
            if schema not in of_any.setdefault(option, []):
                of_any[option].append(schema)
    union = {option: schemas[0] if len(schemas) == 1 else {"anyOf": schemas} for option, schemas in of_any.items()}
    without_name = {"properties": union, "additionalProperties": False}
    name_schema = {"oneOf": [{"const": name, "description": summary(registry.get(name))} for name in names]}
    return {
        "type": "object",
        "properties": {"name": name_schema},
        "allOf": [*cases, {"if": {"not": {"required": ["name"]}}, "then": without_name}],
    }


def _options(registry: Registry[Any], name: str) -> dict[str, Json]:
    hints, constructor = registry.types(name), registry.get(name)
    result = {}
    for option, parameter in registry.options(name).items():
        schema = or_interpolation(type_schema(hints[option]))
        if parameter.default is not parameter.empty:
            schema = schema | {"default": to_plain(parameter.default)}
        text = option_description(constructor, option)
        result[option] = schema | ({"description": text} if text else {})
    return result


def _dotted_keys(schema: type[Any], pointer: str) -> tuple[dict[str, Json], list[str]]:
    """The schema of each full key below `schema`, by reference; patterns of the keys below free mappings."""
    keys: dict[str, Json] = {}
    free: list[str] = []
    for field in dataclasses.fields(schema):
        if field.name in ("sweep", "task"):
            continue
        below = f"{pointer}/properties/{field.name}"
        keys[field.name] = {"$ref": below}
        if dataclasses.is_dataclass(field.type):
            nested, nested_free = _dotted_keys(cast(type[Any], field.type), below)
            keys |= {f"{field.name}.{key}": reference for key, reference in nested.items()}
            free += [f"^{field.name}[.]{pattern.removeprefix('^')}" for pattern in nested_free]
        elif isinstance(getattr(schema(), field.name), dict):
            free.append(f"^{field.name}[.]")
    return keys, free


def _mapping(properties: Json, patterns: Json) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "patternProperties": patterns,
        "additionalProperties": False,
    }
