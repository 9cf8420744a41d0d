"""Initialisation by the names of parameters, independent of what else a model contains."""

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
    """The module that `construct()` returns; each parameter is initialised from a random seed given by its name.

    Two models then have equal initial values in all parameters of equal name, shape and initialisation, so that runs
    can be paired by seed (Bouthillier et al., arXiv 2103.03098). Distributions do not change.

    The seeds also depend on one number drawn from the default generator, whose state afterwards does not depend on the
    model: models constructed one after the other differ. This covers in-place initialisation, as by torch.nn.init. A
    parameter made from `torch.randn` uses the random numbers that follow those of the parameter registered before it.

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
