"""Clauses on torch.compile and torch.export."""

import torch
from torch import Tensor, nn

from attnzoo.contract.cases import BATCH, DIM, NUM_OBJECTS, Case
from attnzoo.contract.expect import context, require_close
from attnzoo.geometry import Layout, Pyramid, Queries, Role

ONE_GRAPH_HINT = "(it must trace to one graph: no branches on tensor values or sizes, no item(), no tolist())"
Inputs = tuple[list[Tensor], list[Tensor], Tensor, Tensor]


class FromTensors(nn.Module):
    """An attention as a function of tensors only; the layout is built inside, so that it is compiled too."""

    def __init__(self, case: Case):
        super().__init__()
        self.case, self.attention = case, case.build()

    def forward(self, maps: list[Tensor], masks: list[Tensor], objects: Tensor, refs: Tensor) -> Tensor:
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        memory = Pyramid(tokens, Layout.from_masks(masks), tokens * 0.5)
        decoding = self.case.role == Role.DECODER
        output: Tensor = self.attention(Queries(objects, refs) if decoding else memory.as_queries(), memory)
        return output

    def example(self, growth: int = 0, seed: int = 0) -> Inputs:
        """Inputs on the case's maps, each `growth` higher and twice that wider."""
        generator = torch.Generator().manual_seed(seed)
        shapes = [(h + growth, w + 2 * growth) for h, w in self.case.maps]
        maps = [torch.randn(BATCH, DIM, h, w, generator=generator) for h, w in shapes]
        masks = [torch.zeros(BATCH, h, w, dtype=torch.bool) for h, w in shapes]
        for mask in masks:
            mask[0, :, mask.shape[2] // 2 + 1 :] = True
        objects = torch.randn(BATCH, NUM_OBJECTS + growth, DIM, generator=generator)
        return maps, masks, objects, torch.rand(BATCH, NUM_OBJECTS + growth, 2, generator=generator)


def compiles(case: Case, dynamic: bool, growths: tuple[int, ...], backend: str = "aot_eager") -> None:
    """The graph without breaks gives the eager outputs and gradients, on maps enlarged by each of `growths`."""
    module = FromTensors(case)
    parameters = [p for p in module.parameters() if p.requires_grad]
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend, dynamic=dynamic)
    for growth in growths:
        inputs = module.example(growth)
        with torch._dynamo.config.patch(error_on_recompile=True), context(ONE_GRAPH_HINT):
            actual = compiled(*inputs)
        expected = module(*inputs)
        require_close(actual, expected, "the compiled output differs from the eager one", atol=1e-5, rtol=1e-5)
        require_close(
            torch.autograd.grad(actual.square().sum(), parameters),
            torch.autograd.grad(expected.square().sum(), parameters),
            "the compiled gradients differ from the eager ones",
            atol=1e-4,
            rtol=1e-4,
        )


def compile_static(case: Case) -> None:
    """torch.compile gives one graph for maps of fixed size."""
    compiles(case, dynamic=False, growths=(0,))


def compile_dynamic(case: Case) -> None:
    """torch.compile gives one graph for maps of several sizes.

    Each has several windows and is no multiple of their size: torch specialises graphs for sizes of 1 and exact fits.
    """
    compiles(case, dynamic=True, growths=(8, 10))


def export(case: Case) -> None:
    """The exported graph gives the eager outputs on other inputs."""
    module = FromTensors(case)
    with context(ONE_GRAPH_HINT):
        exported = torch.export.export(module, module.example()).module()
    inputs = module.example(seed=5)
    require_close(
        exported(*inputs), module(*inputs), "the exported output differs from the eager one", atol=1e-5, rtol=1e-5
    )
