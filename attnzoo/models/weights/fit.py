"""Fit tensors into a model: what is loaded, resized, left at its initial values, or refused."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attnzoo.errors import UserError, plural
from attnzoo.models.weights.resize import (
    align_levels,
    is_resizable_bias,
    projection_names,
    resize_position_bias,
    rows_of_levels,
)
from attnzoo.models.weights.sources import Converted

_BODY = "backbone.body."  # where a detector has the modules of a backbone
_CLASSES = re.compile(r"(heads\.(classes\.\d+|encoder_class)|head)\.(weight|bias)\Z")
_BOX_HEAD = re.compile(r"heads\.boxes\.(\d+)\.(.*)\Z")
_QUERIES = "queries.embedding.weight"
_NECK = re.compile(r"neck\.(projections\.\d+\.|c6\.|level_embedding\Z)")
_PER_LEVEL = re.compile(r"(.*attention)\.(sampling_offsets|attention_weights)\.(weight|bias)\Z")
_ATTENTION = re.compile(r"(encoder\.\d+\.attention|decoder\.\d+\.cross_attention|.*blocks\.\d+\.attention)\.")
_NORMS = "norms."  # of a backbone, which classifiers do not have
_COUNTER = "num_batches_tracked"


@dataclass
class LoadReport:
    """What loading weights did. Names are those of the model, except `skipped`, which are those of the file.

    - `loaded`: parameters and buffers that have the values of the file, resized ones included
    - `reshaped`: how tensors of another size were made to fit
    - `missing`: what keeps its initial values, in whole or in part, and why
    - `skipped`: what the file has and the model has not
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    reshaped: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """One line with the numbers of tensors."""
        return (
            f"{self.source}: {len(self.loaded)} loaded, {len(self.reshaped)} of them reshaped; "
            f"{len(self.missing)} missing; {len(self.skipped)} skipped"
        )

    def __str__(self) -> str:
        """The summary, and a line for each group of tensors that differ in their numbers alone."""
        lines = [self.summary]
        lines += [f"  reshaped {line}" for line in _grouped(self.reshaped)]
        lines += [f"  missing  {line}" for line in _grouped(self.missing)]
        lines += [f"  skipped  {line}" for line in _grouped(dict.fromkeys(self.skipped, ""))]
        return "\n".join(lines)


def _grouped(reasons: Mapping[str, str]) -> list[str]:
    groups: dict[tuple[str, str], int] = {}
    for name, reason in reasons.items():
        pattern = re.sub(r"(?<![^.])\d+(?![^.])", "*", re.sub(r"\.(weight|bias|running_mean|running_var)\Z", "", name))
        groups[pattern, reason] = groups.get((pattern, reason), 0) + 1
    return [
        f"{pattern} ({plural(count, 'tensor')}){f': {reason}' if reason else ''}"
        for (pattern, reason), count in groups.items()
    ]


class Fit:
    """The tensors of a file beside those of a model. Constructing it changes nothing; `apply` loads them.

    `problems` lists what does not fit, in words: a strict load refuses them.
    """

    def __init__(self, model: nn.Module, converted: Converted):
        self._model = model
        self._current = model.state_dict(keep_vars=True)
        self._tensors, self._origin, unknown = _with_names_of(self._current, converted)
        self._loaded_from: dict[str, str] = {}  # of `values` with another name in `_tensors`
        self.report = LoadReport(converted.source, skipped=[*converted.skipped])
        self.problems: list[str] = []
        self.values: dict[str, Tensor] = {}
        self._num_levels = len(projection_names(self._tensors))
        self._levels = align_levels(self._tensors, self._current)
        self._other_levels = self._num_levels not in (0, len(projection_names(self._current)))
        self._other_attentions = self._attentions_without_weights()
        self._is_body = not any(name.startswith(("heads.", "head.")) for name in self._current)
        for name, parameter in self._current.items():
            if name.endswith(_COUNTER):
                continue
            if name in self._tensors:
                self._place(name, self._tensors[name], parameter)
        self._fill_shared()
        self._check_refined()
        self._report_missing()
        self._report_skipped(unknown, converted)

    def apply(self) -> None:
        """Load what fits; nothing on the meta device."""
        if self.values and not any(parameter.is_meta for parameter in self._current.values()):
            self._model.load_state_dict(self.values, strict=False)

    def check(self, path: str, where: str = "", *, strict: bool = True) -> None:
        """Raise UserError for NaN or infinity, and for `problems`: with `strict` for all, else if nothing fits.

        `where` is the config key of the path.
        """
        on_meta = any(parameter.is_meta for parameter in self._current.values())
        without = self.without_values(allow_meta=on_meta)
        problems = [without] if without else self.problems
        if not problems or not (strict or without or not self.values):
            return
        prefix = f"{where}: " if where else ""
        starts = ("size", "the box heads")
        separator = ": " if problems[0].startswith(starts) or " differ " in problems[0] else " "
        raise UserError(f"{prefix}{path}{separator}{problems[0]}", key=where)

    def without_values(self, allow_meta: bool = False) -> str:
        """Which tensor to load has NaN or infinity, or no values, as on the meta device, in words; "" if none has."""
        for name, each in self.values.items():
            if not (allow_meta if each.is_meta else _finite(each)):
                return f"has NaN, infinity or no values in {self._called(name)}"
        return ""

    def _called(self, name: str) -> str:
        """The name in the file of a tensor, and the model's if it is another: of the part with NaN or infinity."""
        source = self._loaded_from.get(name, name)
        keys, tensor = self._origin[source], self._tensors[source]
        parts = tensor.chunk(len(keys)) if len(keys) > 1 else [tensor]
        key = next((key for key, part in zip(keys, parts, strict=True) if part.is_meta or not _finite(part)), keys[0])
        return name if key == name else f"{key} ({name})"

    def _place(self, name: str, tensor: Tensor, parameter: Tensor) -> None:
        """Load a tensor, resized where that is known, or say why not."""
        shape, current = parameter.shape, parameter.detach()
        sizes = f"{tuple(tensor.shape)} in the file, {tuple(shape)} in the model"
        if parameter.is_floating_point() and not tensor.is_floating_point():
            self.report.missing[name] = "another dtype"
            kinds = [str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, parameter.dtype)]
            self.problems.append(f"has {kinds[0]} values for {self._called(name)}, expected {kinds[1]}")
            return
        if self._other_levels and _NECK.match(name):
            self._place_level(name, current)
        elif tensor.shape == shape:
            self._load(name, tensor)
        elif tensor.ndim == 4 and tensor.shape[2:] == (1, 1) and tensor.shape[:2] == shape:
            self._load(name, tensor.flatten(1))  # a 1x1 convolution that is a linear layer here
        elif is_resizable_bias(name, tensor, shape):
            self._load(name, resize_position_bias(tensor, shape), f"bicubic, {sizes}")
        elif _CLASSES.match(name) and tensor.ndim == len(shape) and tensor.shape[1:] == shape[1:]:
            self.report.missing[name] = f"other classes, {sizes}"
        elif name == _QUERIES and tensor.shape[1:] == shape[1:]:
            self._load_rows(name, tensor, current)
        elif match := _PER_LEVEL.match(name):
            self._place_per_level(name, tensor, current, self._model.get_submodule(match[1]), sizes)
        else:
            self._refuse_size(name, tensor.shape, shape)

    def _refuse_size(self, name: str, theirs: Sequence[int], expected: Sequence[int]) -> None:
        sizes = f"{tuple(theirs)} in the file, {tuple(expected)} in the model"
        self.report.missing[name] = f"another size, {sizes}"
        self.problems.append(f"size mismatch for {self._called(name)}: {sizes}")

    def _load(self, name: str, tensor: Tensor, how: str = "", of: str = "") -> None:
        self.values[name] = tensor
        self._loaded_from[name] = of or name
        self.report.loaded.append(name)
        if how:
            self.report.reshaped[name] = how

    def _load_rows(self, name: str, tensor: Tensor, current: Tensor) -> None:
        """Queries are a set: as many as both have are loaded."""
        rows, total = min(len(tensor), len(current)), len(current)
        self._load(name, torch.cat([tensor[:rows], _initial(current)[rows:].to(tensor)]))
        self.report.reshaped[name] = f"the first {rows} of {len(tensor)} queries"
        if rows < total:
            self.report.missing[name] = f"{total - rows} of {total} queries are not in the file"

    def _place_level(self, name: str, current: Tensor) -> None:
        """Part of the neck of a model with other levels: that of the level whose projection has the same shape."""
        if name == "neck.level_embedding":
            size = (self._num_levels, current.shape[1])
            if self._tensors[name].shape != size:
                self._refuse_size(name, self._tensors[name].shape, size)
                return
            rows = _initial(current)
            for level, other in self._levels.items():
                rows[level] = self._tensors[name][other]
            self._load_levels(name, rows)
            return
        names = projection_names(self._current)
        level = next(index for index, module in enumerate(names) if name.startswith(f"{module}."))
        if level not in self._levels:
            self.report.missing[name] = "another feature level"
            return
        theirs = projection_names(self._tensors)[self._levels[level]]
        key = theirs + name.removeprefix(names[level])
        if key not in self._tensors:
            self.problems.append(f"has no {key}")
            self.report.missing[name] = "not in the file"
        elif self._tensors[key].shape == current.shape:
            self._load(name, self._tensors[key], of=key)
        else:
            self._refuse_size(key, self._tensors[key].shape, current.shape)

    def _load_levels(self, name: str, tensor: Tensor) -> None:
        pairs = ", ".join(f"{other} as {level}" for level, other in self._levels.items())
        if not self._levels:
            self.report.missing[name] = "other feature levels"
            return
        self._load(name, tensor, f"other feature levels: {pairs}")
        if len(self._levels) < len(projection_names(self._current)):
            self.report.missing[name] = "feature levels that are not in the file"

    def _place_per_level(self, name: str, tensor: Tensor, current: Tensor, attention: Any, sizes: str) -> None:
        """Offsets or weights of deformable attention for each level."""
        level = getattr(attention, "level", None)  # of deformable attention on one of several levels
        levels = self._levels if level is None else {0: self._levels[level]} if level in self._levels else {}
        if self._other_levels and levels:
            rows = rows_of_levels(tensor, _initial(current), attention.slot.heads, levels, self._num_levels)
            if rows is not None:
                self._load_levels(name, rows)
                return
        self.report.missing[name] = f"other levels or points, {sizes}"

    def _attentions_without_weights(self) -> set[str]:
        """Attention modules none of whose parameters are in the file: the model has another attention."""
        modules: dict[str, bool] = {}
        for name in self._current:
            if match := _ATTENTION.match(name):
                modules[match[1]] = modules.get(match[1], False) or name in self._tensors
        if not any(_ATTENTION.match(name) for name in self._tensors):
            return set()
        return {module for module, found in modules.items() if not found}

    def _fill_shared(self) -> None:
        """Parameters under several names: files may hold one of them. Their values must agree."""
        names: dict[int, list[str]] = {}
        for name, parameter in self._current.items():
            names.setdefault(id(parameter), []).append(name)
        for shared in (each for each in names.values() if len(each) > 1):
            given = [name for name in shared if name in self.values]
            if any(not _equal(self.values[given[0]], self.values[name]) for name in given[1:]):
                self.problems.append(
                    f"{' and '.join(map(self._called, given[:2]))} differ in the file, but the model shares them "
                    "(model.head.shared = false, or refine = true, does not)"
                )
            if given:
                self.report.loaded += [name for name in shared if name not in self.values]
                self.values |= dict.fromkeys(shared, self.values[given[0]])

    def _check_refined(self) -> None:
        """The box heads of refined models differ: equal ones, unless they are initial ones, are of another model.

        Files of Deformable DETR hold the shared head of a model without refinement once for each layer.
        """
        head = getattr(getattr(self._model, "config", None), "head", None)
        heads: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.values.items():
            if match := _BOX_HEAD.match(name):
                heads.setdefault(match[1], {})[match[2]] = tensor
        if not getattr(head, "refine", False) or getattr(head, "shared", None) or len(heads) < 2:
            return
        first, *others = heads.values()
        initial = any(tensor.is_meta or not tensor.any() for name, tensor in first.items() if name.endswith("weight"))
        if not initial and all(_equal(first[name], other[name]) for other in others for name in first):
            self.problems.append(
                "the box heads of all decoder layers are equal: weights of a model without refinement "
                "(model.head.refine = false)"
            )

    def _report_missing(self) -> None:
        missing = []
        for name in self._current:
            if name in self.values or name in self.report.missing or name.endswith(_COUNTER):
                continue
            attention = _ATTENTION.match(name)
            if attention and attention[1] in self._other_attentions:
                self.report.missing[name] = "another attention"
            elif name.startswith((_NORMS, "head.")) or (self._other_levels and _NECK.match(name)):
                self.report.missing[name] = "another feature level" if _NECK.match(name) else "not in the file"
            else:
                missing.append(name)
                self.report.missing[name] = "not in the file"
        if missing and not self._is_body and all(name.startswith(_BODY) for name in self.values):
            self.problems.insert(0, "holds a backbone alone: load it as model.backbone.weights")
        elif missing:
            self.problems.insert(0, f"has {plural(len(missing), 'missing key')}, e.g. {missing[0]!r}")

    def _report_skipped(self, unknown: list[str], converted: Converted) -> None:
        self.report.skipped += [key for name in unknown for key in converted.origin[name]]
        if self._is_body:
            return  # backbones are cut after the last stage that is used, and have no head
        stray = [name for name in converted.skipped if not name.endswith(_COUNTER)]
        stray += [
            key
            for name in unknown
            for key in converted.origin[name]
            if not _ATTENTION.match(name) and not name.endswith(_COUNTER) and not self._level_only(name)
        ]
        if stray:
            self.problems.insert(0, f"has {plural(len(stray), 'unexpected key')}, such as {min(stray)!r}")

    def _level_only(self, name: str) -> bool:
        return self._other_levels and _NECK.match(name) is not None


def _finite(tensor: Tensor) -> bool:
    one_byte = tensor.element_size() == 1  # float8, for which there is no isfinite
    return bool((tensor.float() if one_byte else tensor).isfinite().all())


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and (a.is_meta or torch.equal(a, b)))


def _initial(current: Tensor) -> Tensor:
    """A copy of initial values, or zeros for those that do not exist on the meta device."""
    return torch.zeros(current.shape, device="cpu") if current.is_meta else current.detach().cpu().clone()


def _with_names_of(
    current: Mapping[str, Tensor], converted: Converted
) -> tuple[dict[str, Tensor], dict[str, list[str]], list[str]]:
    """The tensors under the names of the model, their names in the file, and our names that the model does not have.

    A backbone alone has other prefixes than the backbone of a detector.
    """
    options = [
        {name: name for name in converted.tensors},
        {name.removeprefix(_BODY): name for name in converted.tensors},
        {name.removeprefix("backbone."): name for name in converted.tensors},
        {_BODY + name: name for name in converted.tensors},
    ]
    names = max(options, key=lambda option: len(option.keys() & current.keys()))
    return (
        {new: converted.tensors[old] for new, old in names.items()},
        {new: converted.origin[old] for new, old in names.items()},
        [old for new, old in names.items() if new not in current],
    )
