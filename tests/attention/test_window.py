"""Attention within windows: what a pixel attends to, checked against dense attention with a mask."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from attnzoo.attention import Attention, build, record
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot

DIM, HEADS = 12, 3


def make(role: Role = Role.STAGE, levels: int = 1, layer: int = 0, **options: Any) -> Attention:
    torch.manual_seed(0)
    attention = build("window", Slot(DIM, HEADS, levels, role, layer), **options).double().eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return attention


def pyramid(shapes: list[tuple[int, int]], batch: int = 2, masks: list[Tensor] | None = None) -> Pyramid:
    g = torch.Generator().manual_seed(1)
    layout = Layout.from_masks(masks) if masks else Layout.unpadded(shapes, batch)
    tokens, pos = torch.randn(2, batch, layout.num_tokens, DIM, generator=g, dtype=torch.float64)
    return Pyramid(tokens, layout, pos)


def group(position: int, size: int, window: int, shift: int) -> int:
    """Index of the window of a row or column."""
    return 0 if size <= window else (position + window - shift) // window


def dense(attention: Attention, memory: Pyramid, window: int, shift: int, queries: Queries | None = None) -> Tensor:
    """The same parameters as one dense attention of all pixels, those of other windows masked: pixel by pixel."""
    ((h, w),) = memory.layout.spatial_shapes
    q_bias, k_bias, v_bias = attention.qkv.bias.chunk(3)
    q_weight, k_weight, v_weight = attention.qkv.weight.chunk(3)
    q = (queries or memory.as_queries()).with_pos_embed() @ q_weight.T + q_bias
    k = memory.with_pos_embed() @ k_weight.T + k_bias
    v = memory.tokens @ v_weight.T + v_bias
    bias = torch.full((HEADS, h * w, h * w), -torch.inf, dtype=torch.float64)
    table = attention.relative_position_bias_table
    for i in range(h * w):
        for j in range(h * w):
            (yi, xi), (yj, xj) = divmod(i, w), divmod(j, w)
            together = [
                group(a, n, window, shift) == group(b, n, window, shift) for a, b, n in [(yi, yj, h), (xi, xj, w)]
            ]
            if all(together):
                entry = (yi - yj + window - 1) * (2 * window - 1) + xi - xj + window - 1
                bias[:, i, j] = 0 if table is None else table[entry]
    q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(2, 3) / (DIM / HEADS) ** 0.5 + bias).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2) @ attention.proj.weight.T + attention.proj.bias


@pytest.mark.parametrize("shape", [(6, 9), (7, 5), (3, 8), (2, 2), (1, 4)], ids=str)
@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_dense_attention_with_a_block_mask(shape: tuple[int, int], shift: int, bias: bool) -> None:
    attention, memory = make(window=3, shift=shift, bias=bias), pyramid([shape])
    assert_close(attention(memory.as_queries(), memory), dense(attention, memory, 3, shift), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("pos", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_queries_different_from_memory(padded: bool, pos: bool) -> None:
    """Queries are projected from the queries, keys and values from the memory."""
    mask = torch.zeros(2, 6, 9, dtype=torch.bool)
    mask[0, 4:], mask[0, :, 7:] = padded, padded
    attention, memory = make(window=3, shift=1), pyramid([(6, 9)], masks=[mask] if padded else None)
    tokens, embedding = torch.randn(2, 2, 54, DIM, dtype=torch.float64)
    queries = Queries(tokens, pos=embedding if pos else None)
    expected = dense(attention, memory, 3, 1, queries)[1]  # the image without padding
    assert_close(attention(queries, memory)[1], expected, atol=1e-12, rtol=1e-12)


def test_rejects_queries_that_are_not_on_the_grid() -> None:
    attention, memory = make(window=3), pyramid([(6, 9)])
    message = "WindowAttention in role stage needs one query per token of the memory: expected 54, got 5"
    with pytest.raises(ValueError, match=message):
        attention(Queries(memory.tokens[:, :5]), memory)


@pytest.mark.parametrize("shift", [0, 2])
def test_levels_are_partitioned_independently(shift: int) -> None:
    attention, memory = make(Role.ENCODER, levels=2, window=4, shift=shift), pyramid([(6, 9), (3, 5)])
    alone = [dense(attention, memory.level(level), 4, shift) for level in range(2)]
    assert_close(attention(memory.as_queries(), memory), torch.cat(alone, 1), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("valid", [(5, 6), (2, 7), (3, 3), (1, 1), (8, 9)], ids=str)
def test_padding_does_not_change_the_partition(valid: tuple[int, int], shift: int) -> None:
    h, w = valid
    mask = torch.ones(2, 8, 9, dtype=torch.bool)
    mask[0, :h, :w] = False
    mask[1] = False
    attention, memory = make(window=3, shift=shift), pyramid([(8, 9)], masks=[mask])
    inside = ~mask[0].flatten()
    alone = Pyramid(memory.tokens[:1, inside], Layout.unpadded([valid], 1), memory.pos[:1, inside])
    together = attention(memory.as_queries(), memory)
    assert_close(together[:1, inside], attention(alone.as_queries(), alone), atol=1e-12, rtol=1e-12)
    assert_close(together[1:], dense(attention, memory, 3, shift)[1:], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("role", [Role.STAGE, Role.DECODER])
def test_window_without_valid_pixels_gives_the_output_bias(role: Role) -> None:
    mask = torch.ones(2, 8, 9, dtype=torch.bool)
    mask[1] = False
    attention, memory = make(role, window=3), pyramid([(8, 9)], masks=[mask])
    objects = Queries(memory.tokens[:, :4], torch.rand(2, 4, 2))
    output = attention(objects if role == Role.DECODER else memory.as_queries(), memory)
    assert torch.equal(output[0], attention.proj.bias.expand_as(output[0]))
    assert not torch.isclose(output[1], attention.proj.bias).any()
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in attention.parameters())


@pytest.mark.parametrize("role", [Role.STAGE, Role.DECODER])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_inference_equals_the_path_with_gradients(role: Role, padded: bool, bias: bool) -> None:
    mask = torch.zeros(2, 8, 9, dtype=torch.bool)
    mask[0], mask[0, :5, :4] = padded, False
    attention = make(role, window=3, shift=0 if role == Role.DECODER else 1, bias=bias)
    memory = pyramid([(8, 9)], masks=[mask] if padded else None)
    objects = Queries(memory.tokens[:, :4], torch.rand(2, 4, 2))
    queries = objects if role == Role.DECODER else memory.as_queries()
    expected = attention(queries, memory)
    with torch.inference_mode():
        assert_close(attention(queries, memory), expected.detach(), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("padded", [False, True])
def test_only_padding_takes_a_pass_that_zeroes_outputs(padded: bool) -> None:
    """The pixels that fill up the windows of (5, 7) have no key either, but are dropped."""
    masks = [torch.zeros(2, 5, 7, dtype=torch.bool)] if padded else None
    memory = pyramid([(5, 7)], masks=masks)
    attention = make(window=3, shift=1)
    with FilledMasks() as filled:
        attention(memory.as_queries(), memory)
    assert filled.scores == 1
    assert filled.outputs == int(padded)


class FilledMasks(TorchDispatchMode):
    """Counts calls of masked_fill on scores, of 9 keys, and on outputs, of the channels of a head."""

    scores = outputs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.masked_fill.Scalar:
            self.scores += args[0].shape[-1] == 9
            self.outputs += args[0].dim() == 5 and args[0].shape[-1] == DIM // HEADS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("window", [1, 3, 4])
def test_object_queries_attend_to_the_pixels_around_their_reference(window: int) -> None:
    shapes = [(6, 9), (3, 5)]
    attention, memory = make(Role.DECODER, levels=2, window=window), pyramid(shapes)
    refs = torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.49, 0.76], [1.0, 1.0]], dtype=torch.float64)
    objects = Queries(torch.randn(2, 4, DIM, dtype=torch.float64), refs.expand(2, -1, -1))
    output = attention(objects, memory)
    q_weight, k_weight, v_weight = attention.qkv.weight.chunk(3)
    q_bias, k_bias, v_bias = attention.qkv.bias.chunk(3)
    table = attention.relative_position_bias_table.unflatten(0, (2, window, window))
    for query, (x, y) in enumerate(refs.tolist()):
        keys, values, biases = [], [], []
        for level, (h, w) in enumerate(shapes):
            tokens, pos = (t.split([54, 15], 1)[level].unflatten(1, (h, w)) for t in (memory.tokens, memory.pos))
            row, column = min(int(y * h), h - 1), min(int(x * w), w - 1)
            for i in range(window):
                for j in range(window):
                    r, c = row + i - window // 2, column + j - window // 2
                    if 0 <= r < h and 0 <= c < w:
                        keys.append((tokens + pos)[:, r, c] @ k_weight.T + k_bias)
                        values.append(tokens[:, r, c] @ v_weight.T + v_bias)
                        biases.append(table[level, i, j])
        q = (objects.tokens[:, query] @ q_weight.T + q_bias).unflatten(-1, (HEADS, -1))
        k, v = (torch.stack(x, 1).unflatten(-1, (HEADS, -1)) for x in (keys, values))
        scores = torch.einsum("bmd,bkmd->bkm", q, k) / (DIM / HEADS) ** 0.5 + torch.stack(biases)
        heads = torch.einsum("bkm,bkmd->bmd", scores.softmax(1), v).flatten(1)
        expected = heads @ attention.proj.weight.T + attention.proj.bias
        assert_close(output[:, query], expected, atol=1e-12, rtol=1e-12)


def test_alternate_shifts_every_second_layer() -> None:
    memory = pyramid([(9, 9)])
    for layer, shift in [(0, 0), (1, 2), (2, 0)]:
        alternating, fixed = make(layer=layer, window=5, shift="alternate"), make(layer=layer, window=5, shift=shift)
        assert torch.equal(alternating(memory.as_queries(), memory), fixed(memory.as_queries(), memory))


def test_large_logits_stay_finite_in_half_precision() -> None:
    attention, memory = make(window=3).bfloat16(), pyramid([(6, 9)])
    tokens = (1e4 * memory.tokens).bfloat16().requires_grad_()
    loud = Pyramid(tokens, memory.layout)
    output = attention(loud.as_queries(), loud)
    output.sum().backward()
    assert output.isfinite().all()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()


@pytest.mark.parametrize("shift", [0, 2])
def test_record_shows_the_pixels_of_the_window(shift: int) -> None:
    attention, memory = make(window=3, shift=shift), pyramid([(6, 9)])
    with record(attention) as recording:
        attention(memory.as_queries(), memory)
    (entry,) = recording[""]
    assert entry["weights"].shape == (2, 54, HEADS, 9)
    assert entry["locations"].shape == (2, 54, 9, 2)
    own = memory.layout.centers[:, :, None]
    apart = (entry["locations"] - own).abs() * torch.tensor([9.0, 6.0])
    attended = entry["weights"].amax(2) > 0
    assert (apart[attended] < 2.5).all()  # within three pixels of each other
    assert_close(entry["weights"].sum(-1), torch.ones(2, 54, HEADS, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window = 0"),
        ({"window": 3, "shift": 3}, "shift = 3"),
        ({"window": 3, "shift": -1}, "shift = -1"),
        ({"dropout": 1.0}, r"dropout = 1\.0"),
        ({"shift": "sometimes"}, "shift = 'sometimes'"),
    ],
    ids=str,
)
def test_errors_name_the_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("window", Slot(DIM, HEADS), **options)


def test_object_queries_reject_a_shift() -> None:
    with pytest.raises(UserError, match="shift = 2"):
        build("window", Slot(DIM, HEADS, role=Role.DECODER), window=4, shift=2)


@pytest.mark.parametrize("name", ["window", "neighborhood", "dat"])
def test_queries_different_from_memory_compile_and_export(name: str) -> None:
    """Whether queries are the memory is decided while tracing; the contract covers the case that they are."""

    class FromTensors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = build(name, Slot(DIM, HEADS, role=Role.STAGE))
            for parameter in self.attention.parameters():
                torch.nn.init.normal_(parameter, std=0.3)

        def forward(self, tokens: Tensor, other: Tensor) -> Tensor:
            memory = Pyramid(tokens, Layout.unpadded([(6, 9)], 2))
            return self.attention(Queries(other, memory.layout.centers), memory)

    torch._dynamo.reset()
    module = FromTensors().eval()
    inputs = tuple(torch.randn(2, 2, 54, DIM))
    expected = module(*inputs)
    assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(*inputs), expected)
    assert_close(torch.export.export(module, inputs).module()(*inputs), expected)
    assert not torch.allclose(module(inputs[0], inputs[0]), expected, atol=1e-4)
