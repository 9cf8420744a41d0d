"""The page of the docs with all keys of experiment files, docs/config-reference.md."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from omegaconf import MISSING

from attnzoo.attention import ATTENTIONS
from attnzoo.config.experiment import SCHEMAS
from attnzoo.data.build import (
    CLASSIFICATION_AUGMENTATIONS,
    CLASSIFICATION_DATASETS,
    DETECTION_AUGMENTATIONS,
    DETECTION_DATASETS,
    PROBES,
)
from attnzoo.errors import as_yaml
from attnzoo.models import presets
from attnzoo.reference.descriptions import field_comments, option_description, summary
from attnzoo.reference.types import type_text
from attnzoo.registry import Registry

HEAD = """# Config reference

Every key of an experiment file, with its type, default and range. `attnzoo schema --markdown` writes this
page; `attnzoo schema` writes the same as a JSON Schema, with which
[editors](config-and-sweeps.md#in-an-editor) complete and check experiment files. How keys are merged, and what a sweep
runs: [config and sweeps](config-and-sweeps.md).
"""
Row = tuple[str, str, str, str]


def reference_page() -> str:
    """The page as Markdown."""
    detection, classification, probe = (SCHEMAS[task]() for task in ("detection", "classification", "probe"))
    parts = [
        HEAD,
        _section("Experiment", _rows(detection, "", nested=False)),
        _section("data", _rows(detection.data, "data.")),
        _section("data, in addition, of `task: classification`", _added(classification.data, detection.data, "data.")),
        _section("train", _rows(detection.train, "train.")),
        _section("sweep", _rows(detection.sweep, "sweep.")),
        _section("slurm", _rows(detection.slurm, "slurm.")),
        _section("model of `task: detection`", _rows(detection.model, "model.")),
        _section("model of `task: classification`", _rows(classification.model, "model.")),
        _section("model of `task: probe`", _rows(probe.model, "model.")),
        _presets(),
        _named("Attentions", ATTENTIONS),
        _named("Data sets of `task: detection`", DETECTION_DATASETS),
        _named("Data sets of `task: classification`", CLASSIFICATION_DATASETS),
        _named("Data sets of `task: probe`", PROBES),
        _named("Augmentations of `task: detection`", DETECTION_AUGMENTATIONS),
        _named("Augmentations of `task: classification`", CLASSIFICATION_AUGMENTATIONS),
    ]
    return "\n".join(parts)


def _rows(defaults: Any, prefix: str, nested: bool = True) -> Iterator[Row]:
    comments = field_comments(type(defaults))
    for field in dataclasses.fields(defaults):
        key, default = f"{prefix}{field.name}", getattr(defaults, field.name)
        if dataclasses.is_dataclass(field.type):
            if nested:
                yield from _rows(default, f"{key}.")
            continue
        hint = "a block with a `name`" if "named_block" in field.metadata else None
        text = hint or type_text(field.type, field.metadata.get("range"))
        yield key, text, "" if default == MISSING else as_yaml(default), comments[field.name]


def _added(config: Any, base: Any, prefix: str) -> list[Row]:
    known = {row[0] for row in _rows(base, prefix)}
    return [row for row in _rows(config, prefix) if row[0] not in known]


def _section(title: str, rows: Iterable[Row]) -> str:
    return f"## {title}\n\n{_table('key', rows)}"


def _table(first: str, rows: Iterable[Row]) -> str:
    lines = [f"| {first} | type | default | |", "| --- | --- | --- | --- |"]
    for key, text, default, comment in rows:
        shown = f"`{default}`" if default else ""
        lines.append(f"| `{key}` | {_cell(text)} | {_cell(shown)} | {_cell(comment)} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _presets() -> str:
    lines = ["## Presets", "", "Values of `model.preset`; `attnzoo list NAME` shows what one sets.", ""]
    for task, family in (("detection", "detector"), ("classification", "vit")):
        names = ", ".join(f"`{name}`" for name in presets.names(family=family))
        lines.append(f"- `task: {task}`: {names}")
    return "\n".join([*lines, "- `model.backbone.name`: those of `task: classification`, and timm's models", ""])


def _named(title: str, registry: Registry[Any]) -> str:
    parts = [f"## {title}", ""]
    for name in registry.names():
        constructor, hints = registry.get(name), registry.types(name)
        rows = []
        for option, parameter in registry.options(name).items():
            default = "" if parameter.default is parameter.empty else as_yaml(parameter.default)
            text = type_text(hints[option]) + ("" if default else ", required")
            rows.append((option, text, default, option_description(constructor, option)))
        parts += [f"### {name}", "", summary(constructor), ""]
        parts += [_table("option", rows)] if rows else ["No options.", ""]
    return "\n".join(parts)
