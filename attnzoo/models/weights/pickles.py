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


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _HARMLESS.get((module, name), _Other)


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


def way_out(file: Path, wrappers: Sequence[str]) -> str:
    """A line of Python that keeps the tensors of a pickle which needs other classes; it runs the code of the file.

    `wrappers` are the names under which a state dict, or a module, may be.
    For a whole module it is to be run where the classes of the module can be imported.
    """
    loaded = f"torch.load({str(file)!r}, weights_only=False)"
    try:
        harmless: Any = SimpleNamespace(__name__=__name__, Unpickler=_Unpickler, load=_load)
        with warnings.catch_warnings(action="ignore"):  # that the source of _Other differs
            content = torch.load(file, map_location="cpu", weights_only=False, pickle_module=harmless)
    except Exception:  # of a file that is damaged, or of an old form
        return f'torch.save({loaded}.state_dict(), "weights.pt") for a whole module'
    return f'torch.save({_state_dict(content, loaded, wrappers)}, "weights.pt")'


def _state_dict(content: Any, expression: str, wrappers: Sequence[str]) -> str:
    """The expression of the state dict in what `expression` gives."""
    if not isinstance(content, Mapping):
        return f"{expression}.state_dict()"
    for name in wrappers:
        if isinstance(content.get(name), _Other):
            return f'{expression}["{name}"].state_dict()'
        if isinstance(content.get(name), Mapping):
            return _state_dict(content[name], f'{expression}["{name}"]', wrappers)
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        return expression
    return f"{{name: each for name, each in {expression}.items() if isinstance(each, torch.Tensor)}}"
