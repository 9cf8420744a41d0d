"""Initial values that depend on the name of a parameter alone, not on what was initialised before it."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

ModelT = TypeVar("ModelT", bound=nn.Module)


def init_by_name(construct: Callable[[], ModelT]) -> ModelT:
    """The module that `construct()` returns, its parameters drawn from one random stream per qualified name.

    So two models share the initial values of all parameters that have the same name, shape and initialisation,
    whatever else they are made of: their runs are paired by seed (Bouthillier et al., arXiv 2103.03098).
    Distributions stay as they are.

    The streams are seeded by the name and one number drawn from the default generator, which is left as if nothing else
    had been drawn: models constructed one after the other differ, and what follows does not depend on the model. Covers
    what is drawn in place, as by torch.nn.init; parameters made from `torch.randn` follow the stream of the parameter
    before them.

    On the CPU or a GPU, `construct` is called twice: on the meta device first, to learn the names.
    """
    root = int(torch.randint(2**63 - 1, (), device="cpu"))
    if torch.empty(0).is_meta:
        return construct()
    registered: list[Tensor] = []
    with torch.device("meta"), _on_registration(registered.append):
        names = {id(parameter): name for name, parameter in construct().named_parameters()}
    streams = _Streams(root, [names.get(id(parameter)) for parameter in registered])
    state = torch.default_generator.get_state()
    try:
        with _on_registration(streams.register), streams:
            return construct()
    finally:
        torch.default_generator.set_state(state)


@contextmanager
def _on_registration(callback: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `callback` with each parameter that a module registers within the context."""
    hook = register_module_parameter_registration_hook(
        lambda module, name, parameter: callback(parameter) if parameter is not None else None
    )
    try:
        yield
    finally:
        hook.remove()


class _Streams(TorchDispatchMode):
    """Seeds the generator when a parameter is registered, and before each draw into it.

    `names`: those of the parameters in the order of registration, None for one that the model does not keep.
    """

    def __init__(self, root: int, names: list[str | None]):
        super().__init__()
        self._root, self._names = root, iter(names)
        self._name_of_storage: dict[int, str] = {}
        self._registered: list[Tensor] = []  # kept, so that no other tensor gets their storage
        self._draws: Counter[str] = Counter()  # by name

    def register(self, parameter: Tensor) -> None:
        name = next(self._names)
        if name is not None:
            self._registered.append(parameter)
            self._name_of_storage[_storage(parameter)] = name
            self._seed(name, parameter)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func._schema.is_mutable and any(argument.name == "generator" for argument in func._schema.arguments):
            name = self._name_of_storage.get(_storage(args[0]))
            if name is not None:
                self._seed(name, args[0])
        return func(*args, **(kwargs or {}))

    def _seed(self, name: str, tensor: Tensor) -> None:
        digest = hashlib.blake2b(f"{self._root} {name} {self._draws[name]}".encode(), digest_size=8).digest()
        self._draws[name] += 1
        seed = int.from_bytes(digest, "big") >> 1
        torch.default_generator.manual_seed(seed)
        if tensor.is_cuda:
            torch.cuda.manual_seed(seed)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
