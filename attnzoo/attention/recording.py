"""Record attention weights and sampling locations."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Recording = dict[str, list[dict[str, Tensor]]]


class Recordable(nn.Module):
    """Module whose attention can be recorded. While `recording`, it uses its unfused path."""

    def __init__(self) -> None:
        super().__init__()
        self._entries: list[dict[str, Tensor]] | None = None

    @property
    def recording(self) -> bool:
        """Whether `record` is active on this module. Raises RuntimeError under torch.compile and torch.export."""
        if self._entries is None:
            return False
        if torch.compiler.is_compiling():
            raise RuntimeError("record() does not work under torch.compile or torch.export")
        return True

    def record(self, **tensors: Tensor) -> None:
        """Add one entry of named tensors; call it only while `recording`."""
        assert self._entries is not None, "nothing is being recorded"
        self._entries.append({name: tensor.detach() for name, tensor in tensors.items()})


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Record every attention of a model during the `with` block.

    The recording maps the qualified name of each attention in `model` to a list with one entry per forward call,
    in order. An entry holds detached tensors by name:

    - `weights`: after softmax, before dropout. Dense (B, M, Q, S); deformable (B, Q, M, L, P); dat (B, M, Q, keys);
      window and neighborhood (B, Q, M, keys). dcn and conv (B, Q, 1, k²): the modulation of each tap, or 1.
    - `locations`: x, y in [0, 1] of the padded map of each level. Deformable (B, Q, M, L, P, 2); dat (B, keys, G, 2),
      levels concatenated; window and neighborhood (B, Q, keys, 2); dcn and conv (B, Q, k², 2); dense with a bias
      (B, S, 2).
    - `reference_points`: of the queries, (B, Q, 2 or 4), in [0, 1] of the valid image; if the attention uses them.
    - `bias`: dat with a table or MLP, dense with a bias, (B, M, Q, keys), as added to the scores.

    Recording uses the unfused path, which is slower and needs more memory. There is no overhead otherwise.
    Raises RuntimeError for a compiled model, and if a graph is compiled or exported inside the block. After

        with record(model) as recording:
            model(images, mask)

    `recording["encoder.0.attention"][0]["weights"]` are the weights of the first encoder layer.
    """
    for module in model.modules():
        if isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None:
            raise RuntimeError("record() does not support compiled models: pass the original module")
    recording: Recording = {}
    modules = [(name, module) for name, module in model.named_modules() if isinstance(module, Recordable)]
    for name, module in modules:
        # Submodules record into their parent attention; named_modules yields parents first.
        parent = next((other for other in recording if not other or name.startswith(f"{other}.")), name)
        module._entries = recording.setdefault(parent, [])
    try:
        yield recording
    finally:
        for _, module in modules:
            module._entries = None
