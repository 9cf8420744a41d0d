"""Initial values that depend on the name of a parameter alone, not on what was initialised before it."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class InitByName(TorchDispatchMode):
    """Records the in-place operations that initialise a model, and repeats them with one generator per parameter.

        with InitByName() as init:
            model = Model()
        init.apply(model)

    Distributions stay as they are, but the values of a parameter or buffer depend on the seed and its qualified name
    alone. So two models share the initial values of all tensors that have the same name, shape and initialisation,
    whatever else they are made of (paired comparisons by seed; Bouthillier et al., arXiv 2103.03098).

    The seed is one number drawn from the default generator, which is left as if nothing else had been drawn: models
    built one after the other differ, and what follows does not depend on the model. Covers what is drawn in place, as
    all of torch.nn.init does; a parameter made from `torch.randn` keeps its values.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, tuple[Any, ...], Mapping[str, Any]]] = []  # operator, arguments

    def __enter__(self) -> "InitByName":
        self._root = int(torch.randint(2**63 - 1, (), device="cpu"))
        self._state = torch.default_generator.get_state()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        torch.default_generator.set_state(self._state)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.clone.default:  # by deepcopy: a copy equals its original after `apply` too
            self._calls.append((torch.ops.aten.copy_.default, (result, args[0]), {}))
        elif func._schema.is_mutable:
            self._calls.append((func, args, kwargs or {}))
        return result

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Initialise `model`, which was constructed while this mode was active, again."""
        names = {
            _storage(tensor): name
            for name, tensor in [*model.named_buffers(), *model.named_parameters()]
            if tensor.numel() and not tensor.is_meta
        }
        fills: Counter[str] = Counter()
        for func, args, kwargs in self._calls:
            if args[0].is_meta:
                continue
            if not any(argument.name == "generator" for argument in func._schema.arguments):
                func(*args, **kwargs)
            elif (name := names.get(_storage(args[0]))) is not None:
                generator = torch.Generator(args[0].device).manual_seed(_seed(self._root, name, fills[name]))
                func(*args, **{**kwargs, "generator": generator})
                fills[name] += 1


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _seed(root: int, name: str, index: int) -> int:
    """63-bit seed of the `index`-th random fill of the tensor `name`."""
    digest = hashlib.blake2b(f"{root} {name} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
