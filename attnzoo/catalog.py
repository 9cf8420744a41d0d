"""What experiments can name: attentions, models, data sets and augmentations, with their options and papers."""

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from attnzoo.attention import ATTENTIONS
from attnzoo.data.build import (
    CLASSIFICATION_AUGMENTATIONS,
    CLASSIFICATION_DATASETS,
    DETECTION_AUGMENTATIONS,
    DETECTION_DATASETS,
    PROBES,
)
from attnzoo.errors import UserError, as_yaml, did_you_mean
from attnzoo.models import presets
from attnzoo.registry import Registry, format_type
from attnzoo.schema import yaml12
from attnzoo.schema.keys import flatten, format_value

REGISTRIES: dict[str, Registry[Any]] = {
    "attention": ATTENTIONS,
    "detection data set": DETECTION_DATASETS,
    "detection augmentation": DETECTION_AUGMENTATIONS,
    "classification data set": CLASSIFICATION_DATASETS,
    "classification augmentation": CLASSIFICATION_AUGMENTATIONS,
    "probe": PROBES,
}
CITATION = re.compile(r"\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)")  # (Zhu et al., ICLR 2021)


@dataclass(frozen=True)
class Entry:
    """An attention, model, data set or augmentation. `options` maps an option to its type and default, or its value.

    `paper` is the first citation in its docstring, its module's, or its preset's; "" if there is none.
    """

    kind: str
    name: str
    summary: str
    paper: str
    options: dict[str, str]
    roles: tuple[str, ...] = ()  # of an attention

    def __str__(self) -> str:
        lines = [f"{self.name} ({self.kind})", f"  {self.summary}"]
        lines += [f"  paper: {self.paper}"] if self.paper else []
        lines += [f"  roles: {', '.join(self.roles)}"] if self.roles else []
        heading = "options that the preset sets; the others have their defaults" if self.kind == "model" else "options"
        lines += [f"  {heading}:", *(f"    {name}: {value}" for name, value in self.options.items())]
        return "\n".join(lines if self.options else [*lines[:-1], "  options: none"])


def names() -> dict[str, list[str]]:
    """The names of each kind."""
    kinds = {kind: registry.names() for kind, registry in REGISTRIES.items()}
    return {"attention": kinds.pop("attention"), "model": presets.names(), **kinds}


def find(pattern: str) -> list[Entry]:
    """The entries of a name, or of a pattern such as `dat*`. Raises UserError if there is none."""
    matches = [(kind, name) for kind, of_kind in names().items() for name in of_kind if fnmatchcase(name, pattern)]
    if not matches:
        raise _no_match(pattern)
    return [_preset(name) if kind == "model" else _registered(kind, name) for kind, name in matches]


def _no_match(pattern: str) -> UserError:
    known = dict.fromkeys(name for of_kind in names().values() for name in of_kind)
    see = "(`python -m attnzoo list` shows all names)"
    if not re.search(r"[*?[]", pattern):
        return UserError(f"unknown name {pattern!r}{did_you_mean(pattern, known)} {see}")
    other_case = any(fnmatchcase(name, pattern.lower()) for name in known)
    return UserError(f"no name matches {pattern!r}{f'; did you mean {pattern.lower()!r}?' if other_case else ''} {see}")


def _registered(kind: str, name: str) -> Entry:
    constructor = REGISTRIES[kind].get(name)
    docstrings = [inspect.getdoc(constructor) or "", sys.modules[constructor.__module__].__doc__ or ""]
    return Entry(
        kind,
        name,
        next(iter(docstrings[0].splitlines()), ""),
        next(_citations(docstrings), ""),
        dict(_options(REGISTRIES[kind], name)),
        tuple(sorted(getattr(constructor, "roles", ()))),
    )


def _options(registry: Registry[Any], name: str) -> Iterator[tuple[str, str]]:
    types = registry.types(name)
    for option, parameter in registry.options(name).items():
        default = "required" if parameter.default is parameter.empty else f"default {_format(parameter.default)}"
        yield option, f"{format_type(types[option])}, {default}"


def _format(value: Any) -> str:
    return as_yaml(value) if isinstance(value, (list, tuple)) else format_value(value)


def _preset(name: str) -> Entry:
    family = next(family for family in presets.FOLDERS if name in presets.names(family=family))
    path = presets.FOLDERS[family] / f"{name}.yaml"
    comments = [
        line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    ]
    values = yaml12.read(path)
    paper = next(_citations([" ".join(comments)]), "")
    if not paper and "preset" in values:
        paper = _preset(values["preset"]).paper
    return Entry("model", name, " ".join(comments), paper, {key: _format(value) for key, value in flatten(values)})


def _citations(texts: list[str]) -> Iterator[str]:
    for content in texts:
        yield from CITATION.findall(content)
