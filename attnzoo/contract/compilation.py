"""Clauses on graphs: torch.compile and torch.export."""

import torch
from torch import Tensor, nn

from attnzoo.contract.cases import BATCH, DIM, OBJECTS, Case
from attnzoo.contract.expect import context, require_close
from attnzoo.geometry import Layout, Pyramid, Queries, Role

TRACEABLE = "(write one graph: no branches on values of tensors or on sizes, no item, no tolist)"
Inputs = tuple[list[Tensor], list[Tensor], Tensor, Tensor]


class FromTensors(nn.Module):
    """An attention as a function of tensors alone, as compilers see it: the layout is made inside."""

    def __init__(self, case: Case):
        super().__init__()
        self.case, self.attention = case, case.build()

    def forward(self, maps: list[Tensor], masks: list[Tensor], objects: Tensor, refs: Tensor) -> Tensor:
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        memory = Pyramid(tokens, Layout.from_masks(masks), tokens * 0.5)
        decoding = self.case.role == Role.DECODER
        output: Tensor = self.attention(Queries(objects, refs) if decoding else memory.as_queries(), memory)
        return output

    def example(self, grow: int = 0, seed: int = 0) -> Inputs:
        """Inputs on the case's maps, each higher by `grow` and wider by twice that."""
        random = torch.Generator().manual_seed(seed)
        shapes = [(h + grow, w + 2 * grow) for h, w in self.case.maps]
        maps = [torch.randn(BATCH, DIM, h, w, generator=random) for h, w in shapes]
        masks = [torch.zeros(BATCH, h, w, dtype=torch.bool) for h, w in shapes]
        for mask in masks:
            mask[0, :, mask.shape[2] // 2 + 1 :] = True
        objects = torch.randn(BATCH, OBJECTS + grow, DIM, generator=random)
        return maps, masks, objects, torch.rand(BATCH, OBJECTS + grow, 2, generator=random)


def compiles(case: Case, dynamic: bool, growths: tuple[int, ...], backend: str = "aot_eager") -> None:
    """One graph without breaks gives the eager outputs and gradients on maps grown by each of `growths`."""
    module = FromTensors(case)
    parameters = [p for p in module.parameters() if p.requires_grad]
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend, dynamic=dynamic)
    for grow in growths:
        inputs = module.example(grow)
        with torch._dynamo.config.patch(error_on_recompile=True), context(TRACEABLE):
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

    They are several windows each, none of them whole: torch specialises its graphs for sizes of one and exact fits.
    """
    compiles(case, dynamic=True, growths=(8, 10))


def export(case: Case) -> None:
    """torch.export gives a graph that computes the same on other inputs."""
    module = FromTensors(case)
    with context(TRACEABLE):
        exported = torch.export.export(module, module.example()).module()
    other = module.example(seed=5)
    require_close(
        exported(*other), module(*other), "the exported output differs from the eager one", atol=1e-5, rtol=1e-5
    )
