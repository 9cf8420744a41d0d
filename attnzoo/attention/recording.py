"""Looking at what attentions do: sampling locations and weights, captured on request."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Trace = dict[str, list[dict[str, Tensor]]]


class Traceable(nn.Module):
    """A module that can say what it attends to. While `traced` holds, it takes its unfused path."""

    def __init__(self) -> None:
        super().__init__()
        self._entries: list[dict[str, Tensor]] | None = None

    @property
    def traced(self) -> bool:
        """Whether `record` is active on this module. Raises RuntimeError while a graph is being traced."""
        if self._entries is None:
            return False
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "record() needs the eager path, but a graph is being traced: run without compile or export"
            )
        return True

    def trace(self, **tensors: Tensor) -> None:
        """Add one entry of named tensors; call it only if `traced`."""
        assert self._entries is not None, "nothing is being recorded"
        self._entries.append({name: tensor.detach() for name, tensor in tensors.items()})


@contextmanager
def record(model: nn.Module) -> Iterator[Trace]:
    """Capture what every attention of a model looks at, in the forward passes inside the `with` block.

    `trace` maps the qualified name of each attention in `model` to a list with one entry per forward call,
    in order. An entry holds detached tensors by name:

    - `weights`: after softmax, before dropout. Dense (B, M, Q, S); deformable (B, Q, M, L, P); dat (B, M, Q, keys).
    - `locations`: x, y in [0, 1] of the padded map of each level. Deformable (B, Q, M, L, P, 2); dat (B, keys, G, 2),
      the levels' keys concatenated.
    - `references`: deformable and dat, the queries' references, (B, Q, 2 or 4), in [0, 1] of the valid image.
    - `bias`: dat with a table or perceptron, (B, M, Q, keys), as added to the scores.

    The unfused path is taken inside, so memory and time are those of plain PyTorch. Outside it costs nothing.
    Raises RuntimeError for a compiled model, and if a graph is compiled or exported inside. After

        with record(model) as trace:
            model(images, mask)

    `trace["encoder.layers.0.attention"][0]["weights"]` are the weights of the first encoder layer.
    """
    for module in model.modules():
        if isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None:
            raise RuntimeError("record() cannot look into a compiled model: pass the module that was compiled")
    trace: Trace = {}
    traced = [(name, module) for name, module in model.named_modules() if isinstance(module, Traceable)]
    for name, module in traced:
        # What a part of an attention captures belongs to the attention; parents come before their parts.
        owner = next((outer for outer in trace if not outer or name.startswith(f"{outer}.")), name)
        module._entries = trace.setdefault(owner, [])
    try:
        yield trace
    finally:
        for _, module in traced:
            module._entries = None
