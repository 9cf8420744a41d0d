"""The projects whose weights are read, and their names: one table each, `sources/NAME.yaml`.

Tables map their names to ours, as `Template`s; the first that matches counts. `_NAME.yaml` are parts of several tables.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnzoo.errors import UserError, plural, unknown
from attnzoo.models.weights.keys import Template
from attnzoo.schema import yaml12

FOLDER = Path(__file__).with_name("sources")
AUTO = "auto"
SAME = "same names"
# Of the names that wrappers put before all names, or before those of one part of a larger model.
WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "detr.", "encoder.")

State = Mapping[str, Tensor]


@dataclass
class Converted:
    """A state dict with our names.

    `origin` maps them to the names in the file, several for a tensor in parts; those in `skipped` have none here.
    """

    source: str
    tensors: dict[str, Tensor]
    origin: dict[str, list[str]]
    skipped: list[str]

    def within(self, prefix: str) -> "Converted":
        """The same of a file in which all names start with `prefix`."""
        origin = {name: [f"{prefix}{key}" for key in keys] for name, keys in self.origin.items()}
        return Converted(self.source, self.tensors, origin, [f"{prefix}{key}" for key in self.skipped])


@dataclass(frozen=True)
class Source:
    """One project's names. `model` is "detector", "classifier" or "backbone"; `title` is for messages."""

    name: str
    title: str
    model: str
    signature: tuple[Template, ...]  # each matches a key of every file
    keys: tuple[tuple[Template, tuple[Template, ...]], ...]  # theirs, and ours: the first that the model has
    exclude: tuple[str, ...] = ()  # keys of no file
    ignore: tuple[str, ...] = ()  # endings of keys that are recomputed
    count: Mapping[str, tuple[Template, Template]] = field(default_factory=dict)

    def recognizes(self, state: State) -> bool:
        return not any(name in state for name in self.exclude) and all(
            any(template.match(key, {}) for key in state) for template in self.signature
        )

    def matches(self, state: State) -> int:
        """The number of keys that the table has a name for."""
        known = self._known(state)
        return sum(any(theirs.match(key, known) for theirs, _ in self.keys) for key in state)

    def convert(self, state: State, targets: Collection[str], path: str = "") -> Converted:
        """The tensors under our names; `targets` are the names in the model.

        Raises UserError if one of the tensors that make up another is missing or has another size.
        """
        prefix = f"{path}: " if path else ""
        known = self._known(state)
        converted = Converted(self.title, {}, {}, [])
        parts: dict[str, dict[int, tuple[str, Tensor]]] = {}
        counts: dict[str, int] = {}
        for key, tensor in state.items():
            if key.endswith(self.ignore):
                continue
            found = self._ours(key, known, targets)
            if found is None:
                converted.skipped.append(key)
                continue
            template, names = found
            for name in names:
                if template.part is not None:
                    index, counts[name] = template.part
                    parts.setdefault(name, {})[index] = key, tensor
                converted.tensors.setdefault(name, tensor)
                converted.origin.setdefault(name, [key])
        for name, pieces in parts.items():
            if len(pieces) < counts[name]:
                raise UserError(
                    f"{prefix}{self.title}: {converted.origin[name][0]} is there, but only {len(pieces)} of the "
                    f"{plural(counts[name], 'tensor')} that make up {name}"
                )
            converted.origin[name], tensors = map(
                list, zip(*(pieces[index] for index in range(counts[name])), strict=True)
            )
            shapes = [tuple(tensor.shape) for tensor in tensors]
            if len({shape[1:] for shape in shapes}) > 1 or () in shapes:
                sizes = ", ".join(map(str, shapes))
                raise UserError(f"{prefix}{self.title}: the tensors that make up {name} have the sizes {sizes}")
            converted.tensors[name] = torch.cat(tensors)
        return converted

    def export(self, state: State) -> dict[str, Tensor]:
        """The inverse of `convert`. Raises UserError for a name that the table does not have."""
        known = {name: sum(ours.match(key, {}) is not None for key in state) for name, (_, ours) in self.count.items()}
        return dict(item for name, tensor in state.items() for item in self._theirs(name, tensor, known))

    def _theirs(self, name: str, tensor: Tensor, known: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
        done: set[int] = set()
        for theirs, alternatives in self.keys:
            for ours in alternatives:
                index, count = ours.part or (0, 1)
                match = ours.match(name, known)
                if match is None or index in done:
                    continue
                values, rest = match
                if values.pop("*", 0):
                    return  # shared with layer 0
                done.add(index)
                yield theirs.fill(values, rest, known), tensor.chunk(count)[index].contiguous()
                if len(done) == count:
                    return
        raise UserError(f"{self.title} has no parameter for {name}")

    def _known(self, state: State) -> dict[str, int]:
        """The numbers that `count` names: of keys, where convolutions count if they are 1x1."""
        return {
            name: sum(
                theirs.match(key, {}) is not None and all(size == 1 for size in tensor.shape[2:])
                for key, tensor in state.items()
            )
            for name, (theirs, _) in self.count.items()
        }

    def _ours(self, key: str, known: Mapping[str, int], targets: Collection[str]) -> tuple[Template, list[str]] | None:
        for theirs, alternatives in self.keys:
            match = theirs.match(key, known)
            if match is None:
                continue
            candidates = [(ours, _filled(ours, *match, known, targets)) for ours in alternatives]
            return next((item for item in candidates if item[1][0] in targets), candidates[0])
        return None


def _filled(
    ours: Template, values: dict[str, int], rest: str, known: Mapping[str, int], targets: Collection[str]
) -> list[str]:
    """Our name, or the names in all layers that share the parameter."""
    if not ours.shared:
        return [ours.fill(values, rest, known)]
    names = [ours.fill({**values, "*": 0}, rest, known)]
    while (name := ours.fill({**values, "*": len(names)}, rest, known)) in targets:
        names.append(name)
    return names


@cache
def sources() -> dict[str, Source]:
    """All sources by name."""
    return {path.stem: _read(path) for path in sorted(FOLDER.glob("[!_]*.yaml"))}


def _read(path: Path) -> Source:
    values: dict[str, Any] = yaml12.read(path)
    tables = [values, *(yaml12.read(FOLDER / f"{name}.yaml") for name in values.get("include", []))]
    keys = [
        (Template(theirs), tuple(map(Template, [ours] if isinstance(ours, str) else ours)))
        for table in tables
        for theirs, ours in table["keys"].items()
    ]
    return Source(
        path.stem,
        values["title"],
        values["model"],
        tuple(map(Template, values["signature"])),
        tuple(keys),
        tuple(values.get("exclude", [])),
        tuple(ending for table in tables for ending in table.get("ignore", [])),
        {name: (Template(theirs), Template(ours)) for name, (theirs, ours) in values.get("count", {}).items()},
    )


def named(name: str) -> Source:
    """The source of a name. Raises UserError if there is none."""
    if name not in sources():
        raise unknown("source", name, [AUTO, *sources()], "source")
    return sources()[name]


def detect(state: State, source: str = AUTO) -> tuple[Source | None, dict[str, Tensor], list[str]]:
    """The source of a state dict, the state without prefixes of wrappers, and the keys outside of them.

    None if no source has such keys. Raises UserError for an unknown `source`.
    """
    choices = list(sources().values()) if source == AUTO else [named(source)]
    for unwrapped, outside in _unwrapped(dict(state)):
        for choice in choices:
            if choice.recognizes(unwrapped):
                return choice, unwrapped, outside
    return None, dict(state), []


def _unwrapped(state: dict[str, Tensor], depth: int = 3) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
    """The state, and what is left of it without prefixes, outermost first, beside the keys without the prefix."""
    yield state, []
    if not depth:
        return
    counts = Counter(prefix for key in state for prefix in WRAPPERS if key.startswith(prefix))
    for prefix, _ in counts.most_common():
        inner = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        outside = [key for key in state if not key.startswith(prefix)]
        for unwrapped, more in _unwrapped(inner, depth - 1):
            yield unwrapped, [*outside, *(f"{prefix}{key}" for key in more)]


def unrecognized(state: State, source: str = AUTO) -> str:
    """Why `detect` found none, for messages: what the weights are instead, or which source has most of the keys."""
    if source != AUTO:
        found, _, _ = detect(state)
        if found is not None:
            return f"not weights of {named(source).title}, but of {found.title} (source: {found.name})"
    kind = "of no known source" if source == AUTO else f"not of {named(source).title}"
    others = [each for each in sources().values() if each.keys[0][0].text]  # tables of attnzoo have any name
    best = max(others, key=lambda each: each.matches(state))
    if not best.matches(state):
        return f"weights {kind}: none has names such as {next(iter(state))}"
    count = best.matches(state)
    absent = [each.fill_zeros() for each in best.signature if not any(each.match(key, {}) for key in state)]
    lacks = f"; {absent[0]} is missing" if absent and 2 * count > len(state) else ""
    return f"weights {kind}; nearest is {best.title}, which has {count} of {plural(len(state), 'name')}{lacks}"
