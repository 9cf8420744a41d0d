"""What every attention must fulfil in every role it declares: one function per clause, each taking a `Case`.

`tests/contract/test_contract.py` runs them over all that is registered; nothing here names an attention. The
convention for options: defaults must do, and an option called `level` chooses one level where there are several.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from attnzoo.attention import ATTENTIONS, Attention, build, names, record
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot

DIM, HEADS, BATCH, OBJECTS = 16, 4, 2, 5
MAPS = ((5, 7), (3, 4))
VALID = (((4, 5), (5, 3)), ((2, 3), (3, 2)))  # per level of MAPS and per image: valid (h, w)
# True gradients of these are zero: a constant added to a query's scores cancels in the softmax.
KEY_BIAS = re.compile(r"(^|[._])(proj_k|k_proj|key|key_proj)\.bias$")


@dataclass(frozen=True)
class Case:
    """One attention in one role."""

    name: str
    role: Role

    def __str__(self) -> str:
        return f"{self.name}-{self.role}"

    @property
    def maps(self) -> tuple[tuple[int, int], ...]:
        return MAPS[:1] if self.role == Role.STAGE else MAPS

    @property
    def levels(self) -> int:
        return len(self.maps)

    def build(self, *, seed: int = 0, levels: int | None = None, perturb: bool = True) -> Attention:
        """The attention with default options, in eval mode; zero-initialised parameters are perturbed."""
        torch.manual_seed(seed)
        slot = Slot(DIM, HEADS, levels or self.levels, self.role)
        options = {"level": slot.levels - 1} if "level" in ATTENTIONS.options(self.name) else {}
        attention = build(self.name, slot, **options).eval()
        if perturb:
            with torch.no_grad():
                for parameter in attention.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return attention

    def queries(self, memory: Pyramid, box: bool = False, seed: int = 1) -> Queries:
        """What asks in this role: the memory's own tokens, or objects with points or boxes as references."""
        if self.role != Role.DECODER:
            return memory.as_queries()
        random = torch.Generator().manual_seed(seed)
        batch = memory.tokens.shape[0]
        tokens, pos = torch.randn(2, batch, OBJECTS, DIM, generator=random)
        refs = 0.1 + 0.8 * torch.rand(batch, OBJECTS, 4 if box else 2, generator=random)
        return Queries(tokens, refs, pos)


def cases() -> list[Case]:
    """Every registered attention in every role it declares."""
    return [Case(name, role) for name in names() for role in Role if role in ATTENTIONS.get(name).roles]


def pyramid(
    maps: tuple[tuple[int, int], ...], batch: int = BATCH, masks: list[Tensor] | None = None, seed: int = 0
) -> Pyramid:
    """Random tokens and positions on maps of the given (h, w)."""
    random = torch.Generator().manual_seed(seed)
    layout = Layout.from_masks(masks) if masks else Layout.unpadded(maps, batch)
    tokens, pos = torch.randn(2, batch, layout.num_tokens, DIM, generator=random)
    return Pyramid(tokens, layout, pos)


def padding_masks(levels: int) -> list[Tensor]:
    """Masks of two images of different size, True where padded; the levels round their sizes differently."""
    masks = []
    for (h, w), valid in list(zip(MAPS, VALID, strict=True))[:levels]:
        mask = torch.ones(BATCH, h, w, dtype=torch.bool)
        for image, (vh, vw) in enumerate(valid):
            mask[image, :vh, :vw] = False
        masks.append(mask)
    return masks


def valid_queries(case: Case, memory: Pyramid, output: Tensor) -> list[Tensor]:
    """Outputs (valid queries, C) per image: objects are all valid, grid queries where there is no padding."""
    if case.role == Role.DECODER or memory.layout.padding_mask is None:
        return list(output)
    return [o[~p] for o, p in zip(output, memory.layout.padding_mask, strict=True)]


def check_shape(case: Case) -> None:
    attention, memory = case.build(), pyramid(case.maps)
    for box in (False, True):
        queries = case.queries(memory, box)
        output = attention(queries, memory)
        assert output.shape == queries.tokens.shape, f"{output.shape} from queries {queries.tokens.shape}"
        assert output.dtype == torch.float32
        assert output.isfinite().all()


def check_other_maps(case: Case) -> None:
    """One pixel, one row, one column: a built attention takes maps of any size."""
    attention = case.build()
    for shape in ((1, 1), (1, 6), (6, 1), (2, 9)):
        memory = pyramid((shape,) * case.levels)
        output = attention(case.queries(memory), memory)
        assert output.isfinite().all(), f"not finite on maps of {shape}"


def check_number_of_levels(case: Case) -> None:
    if case.role == Role.STAGE:
        return
    for levels in (1, 3):
        memory = pyramid((*MAPS, (2, 2))[:levels])
        queries = case.queries(memory)
        assert case.build(levels=levels)(queries, memory).shape == queries.tokens.shape


def check_gradients(case: Case) -> None:
    """A gradient reaches most elements of every parameter, the attended tokens and the queries."""
    attention, memory = case.build().train(), pyramid(case.maps)
    tokens = memory.tokens.clone().requires_grad_()
    memory = replace(memory, tokens=tokens)
    queries = case.queries(memory)
    objects = queries.tokens if case.role != Role.DECODER else queries.tokens.clone().requires_grad_()
    output = attention(replace(queries, tokens=objects), memory)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(2)))
    for tensor in (tokens, objects):
        assert tensor.grad is not None
        assert tensor.grad.abs().max() > 1e-3
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None, f"{name} is not reached by the gradient"
        share = (parameter.grad.abs() > 1e-6).float().mean()
        if KEY_BIAS.search(name):
            assert share == 0, f"{name}: the gradient of a key bias must cancel"
        else:
            assert share > 0.5, f"{name}: only {share:.0%} of the elements have a gradient"


def check_padding_is_ignored(case: Case) -> None:
    """Whatever stands in padded tokens changes nothing in valid outputs."""
    attention = case.build()
    clean = pyramid(case.maps, masks=padding_masks(case.levels))
    assert clean.layout.padding_mask is not None
    garbage = 1e3 * torch.randn(clean.tokens.shape, generator=torch.Generator().manual_seed(3))
    padded = clean.layout.padding_mask[..., None]
    dirty = replace(clean, tokens=clean.tokens.where(~padded, garbage), pos=clean.pos.where(~padded, -garbage))
    expected = valid_queries(case, clean, attention(case.queries(clean), clean))
    actual = valid_queries(case, dirty, attention(case.queries(dirty), dirty))
    assert_close(actual, expected, atol=2e-5, rtol=1e-5)


def check_padded_equals_unpadded(case: Case) -> None:
    """An image gives what it gives alone, whatever it is padded to."""
    attention = case.build()
    memory = pyramid(case.maps, masks=padding_masks(case.levels))
    assert memory.layout.padding_mask is not None
    for box in (False, True):
        queries = case.queries(memory, box)
        together = valid_queries(case, memory, attention(queries, memory))
        for image in range(BATCH):
            inside = ~memory.layout.padding_mask[image]
            layout = Layout.unpadded([sizes[image] for sizes in VALID[: case.levels]], 1)
            alone = Pyramid(memory.tokens[image, inside][None], layout, memory.pos[image, inside][None])
            asking = alone.as_queries()
            if case.role == Role.DECODER:
                asking = Queries(*(t[image, None] for t in (queries.tokens, queries.reference_points, queries.pos)))
            assert_close(attention(asking, alone)[0], together[image], atol=2e-5, rtol=1e-5)


def check_all_padded(case: Case) -> None:
    """An image without a valid token gives finite outputs and gradients."""
    masks = padding_masks(case.levels)
    for mask in masks:
        mask[0] = True
    attention, memory = case.build(), pyramid(case.maps, masks=masks)
    output = attention(case.queries(memory), memory)
    assert output.isfinite().all()
    output.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())


def check_batch_independence(case: Case) -> None:
    attention, memory = case.build(), pyramid(case.maps)
    queries = case.queries(memory)
    together = attention(queries, memory)
    for image in range(BATCH):
        alone = Pyramid(memory.tokens[image, None], Layout.unpadded(case.maps, 1), memory.pos[image, None])
        asking = alone.as_queries()
        if case.role == Role.DECODER:
            asking = Queries(*(t[image, None] for t in (queries.tokens, queries.reference_points, queries.pos)))
        assert_close(attention(asking, alone)[0], together[image], atol=1e-5, rtol=1e-5)


def check_other_image(case: Case) -> None:
    """Object queries of one image look at the memory of another, of another size."""
    if case.role != Role.DECODER:
        return
    attention = case.build()
    first, second = pyramid(case.maps), pyramid(tuple((h + 1, w + 2) for h, w in case.maps), seed=4)
    queries = case.queries(first)
    assert not torch.allclose(attention(queries, first), attention(queries, second), atol=1e-3)
    swapped = replace(second, tokens=second.tokens.flip(0), pos=second.pos.flip(0))
    turned = Queries(queries.tokens.flip(0), queries.reference_points.flip(0), queries.pos.flip(0))
    assert_close(attention(queries, swapped), attention(turned, second).flip(0), atol=1e-5, rtol=1e-5)


def check_references_needed(case: Case) -> None:
    """Without references an attention works, or says that it needs them."""
    attention, memory = case.build(), pyramid(case.maps)
    queries = replace(case.queries(memory), reference_points=None)
    if case.role not in attention.needs_reference_points:
        assert attention(queries, memory).shape == queries.tokens.shape
        return
    with pytest.raises(ValueError, match="reference"):
        attention(queries, memory)


def check_precision(case: Case) -> None:
    """bfloat16 autocast stays near float32; a float64 attention works in float64 throughout."""
    attention, memory = case.build(), pyramid(case.maps)
    queries = case.queries(memory)
    expected = attention(queries, memory)
    with torch.autocast("cpu", torch.bfloat16):
        half = attention(queries, memory)
    assert half.isfinite().all()
    assert_close(half.float(), expected, atol=0.05 * float(expected.detach().abs().max()), rtol=0.05)
    precise = replace(memory, tokens=memory.tokens.double(), pos=memory.pos.double())
    asking = replace(queries, tokens=queries.tokens.double(), pos=queries.pos.double())
    output = attention.double()(asking, precise)
    assert output.dtype == torch.float64
    assert_close(output.float(), expected, atol=1e-5, rtol=1e-5)


class FromTensors(nn.Module):
    """An attention as a function of tensors alone, as compilers see it: the layout is made inside."""

    def __init__(self, case: Case):
        super().__init__()
        self.case, self.attention = case, case.build()

    def forward(self, maps: list[Tensor], masks: list[Tensor], objects: Tensor, refs: Tensor) -> Tensor:
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        memory = Pyramid(tokens, Layout.from_masks(masks), tokens * 0.5)
        decoding = self.case.role == Role.DECODER
        return self.attention(Queries(objects, refs) if decoding else memory.as_queries(), memory)

    def example(self, grow: int = 0, seed: int = 0) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
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
    parameters = list(module.parameters())
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend, dynamic=dynamic)
    for grow in growths:
        inputs = module.example(grow)
        with torch._dynamo.config.patch(error_on_recompile=True):
            actual = compiled(*inputs)
        expected = module(*inputs)
        assert_close(actual, expected, atol=1e-5, rtol=1e-5)
        gradients = torch.autograd.grad(actual.square().sum(), parameters)
        assert_close(gradients, torch.autograd.grad(expected.square().sum(), parameters), atol=1e-4, rtol=1e-4)


def check_compile_static(case: Case) -> None:
    compiles(case, dynamic=False, growths=(0,))


def check_compile_dynamic(case: Case) -> None:
    """One graph for maps of several windows each, none of them whole: torch makes its own graphs of ones and fits."""
    compiles(case, dynamic=True, growths=(8, 10))


def check_export(case: Case) -> None:
    module = FromTensors(case)
    inputs = module.example()
    exported = torch.export.export(module, inputs).module()
    other = module.example(seed=5)
    assert_close(exported(*other), module(*other), atol=1e-5, rtol=1e-5)


def check_state_dict(case: Case) -> None:
    memory = pyramid(case.maps)
    queries = case.queries(memory)
    source, target = case.build(seed=0), case.build(seed=1)
    assert not torch.equal(source(queries, memory), target(queries, memory))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(queries, memory), target(queries, memory))


def check_determinism(case: Case) -> None:
    """The same seed gives the same parameters, outputs and gradients, bit for bit."""
    memory = pyramid(case.maps)
    results: list[list[Tensor]] = []
    for _ in range(2):
        attention = case.build(perturb=False).train()
        output = attention(case.queries(memory), memory)
        output.square().sum().backward()
        results.append([output, *(p.grad for p in attention.parameters() if p.grad is not None)])
    assert all(map(torch.equal, *results))


def check_flops(case: Case) -> None:
    """`flops` is what torch counts in a forward pass (it counts two per multiply-accumulate)."""
    attention, memory = case.build(), pyramid(case.maps)
    queries = case.queries(memory)
    with FlopCounterMode(display=False) as counter:
        attention(queries, memory)
    asking = OBJECTS if case.role == Role.DECODER else memory.layout
    assert attention.flops(asking, memory.layout) * 2 * BATCH == counter.get_total_flops()


def check_record(case: Case) -> None:
    """`record` captures weights without changing the output, and nothing once it is left."""
    model, memory = nn.ModuleDict({"block": case.build()}), pyramid(case.maps, masks=padding_masks(case.levels))
    queries = case.queries(memory)
    expected = model["block"](queries, memory)
    with record(model) as recording:
        for _ in range(2):
            assert_close(model["block"](queries, memory), expected, atol=1e-5, rtol=1e-5)
    assert set(recording) == {"block"}
    model["block"](queries, memory)
    assert len(recording["block"]) == 2
    for entry in recording["block"]:
        assert (entry["weights"] >= 0).all()
        assert not any(tensor.requires_grad for tensor in entry.values())
        assert {"locations", "reference_points"} <= set(entry) or case.role not in model["block"].needs_reference_points


def check_meta(case: Case) -> None:
    """It can be built and run without memory, as a check of a configuration does."""
    with torch.device("meta"):
        attention = case.build(perturb=False)
        layout = Layout.unpadded(case.maps, BATCH, "meta")
        memory = Pyramid(torch.empty(BATCH, layout.num_tokens, DIM), layout)
        objects = Queries(torch.empty(BATCH, OBJECTS, DIM), torch.empty(BATCH, OBJECTS, 4))
        queries = objects if case.role == Role.DECODER else memory.as_queries()
        output = attention(queries, memory)
    assert output.device.type == "meta"
    assert output.shape == queries.tokens.shape


CHECKS: dict[str, Callable[[Case], Any]] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}
