"""How to keep the tensors of a pickle that `weights_only=True` refuses, told from it without running its code."""

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

_HARMLESS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}


class _Other:
    """Stands for any other class or function: takes what the pickle gives it, and does nothing."""

    dump_patches = False  # of modules in the format before torch 1.6

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...


class _Array(_Other):
    """Stands for an array of numpy."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_array = module.startswith("numpy.") and name in ("_reconstruct", "_frombuffer")
        return _Array if is_array else _HARMLESS.get((module, name), _Other)


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


def way_out(file: Path, wrappers: Sequence[str]) -> str | None:
    """A line of Python that keeps the tensors of a pickle which needs other classes; it runs the code of the file.

    Arrays of numpy become tensors. `wrappers` are the names under which a state dict, or a module, may be; other
    mappings are searched after them. For a whole module the line is to be run where the classes of the module can be
    imported. None without any tensors.
    """
    loaded = f"torch.load({str(file)!r}, weights_only=False)"
    try:
        harmless: Any = SimpleNamespace(__name__=__name__, Unpickler=_Unpickler, load=_load)
        with warnings.catch_warnings(action="ignore"):  # that the source of _Other differs
            content = torch.load(file, map_location="cpu", weights_only=False, pickle_module=harmless)
    except Exception:  # of a file that is damaged, or of an old form
        return f'torch.save({loaded}.state_dict(), "weights.pt") for a whole module'
    kept = _state_dict(content, loaded, wrappers, set())
    return None if kept is None else f'torch.save({kept}, "weights.pt")'


def _state_dict(content: Any, expression: str, wrappers: Sequence[str], seen: set[int]) -> str | None:
    """The expression of the state dict in what `expression` gives; None if there are no tensors in it.

    `seen` are the ids of mappings above: a file may nest one in itself.
    """
    if type(content) is _Other:
        return f"{expression}.state_dict()"
    if not isinstance(content, Mapping) or id(content) in seen:
        return None
    seen.add(id(content))
    tensors = [isinstance(value, torch.Tensor) for value in content.values()]
    inside = [name for name in wrappers if name in content]
    if not any(tensors):
        inside += [name for name, value in content.items() if name not in wrappers and isinstance(value, Mapping)]
    for name in inside:
        key = f'"{name}"' if name in wrappers else repr(name)
        if found := _state_dict(content[name], f"{expression}[{key}]", wrappers, seen):
            return found
    if any(isinstance(value, _Array) for value in content.values()):
        return f'{{name: torch.as_tensor(each) for name, each in {expression}.items() if hasattr(each, "shape")}}'
    if not any(tensors):
        return None
    kept = f"{{name: each for name, each in {expression}.items() if isinstance(each, torch.Tensor)}}"
    return expression if all(tensors) else kept
