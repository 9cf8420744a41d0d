"""Dense attention against torch's module, and its numerics for large logits."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from attnzoo import models
from attnzoo.attention import build, record
from attnzoo.attention.dense import MultiheadAttention
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot


def pair(dim: int = 24, heads: int = 3) -> tuple[MultiheadAttention, nn.MultiheadAttention]:
    torch.manual_seed(0)
    ours, theirs = MultiheadAttention(dim, heads), nn.MultiheadAttention(dim, heads, batch_first=True)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("padded", [False, True])
def test_equals_torch(padded: bool) -> None:
    ours, theirs = pair()
    query, key, value = (torch.randn(2, n, 24) for n in (5, 7, 7))
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = padded
    expected, _ = theirs(query, key, value, key_padding_mask=padding)
    assert_close(ours(query, key, value, padding), expected, atol=1e-6, rtol=0)


def test_initialisation_equals_torch() -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(256, 8)
    ours = MultiheadAttention(256, 8)
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}
    for name, parameter in theirs.named_parameters():
        assert_close(dict(ours.named_parameters())[name].std(), parameter.std(), atol=1e-4, rtol=0.02)


def test_positions_reach_queries_and_keys_but_not_values() -> None:
    attention = build("dense", Slot(16, 2, role=Role.DECODER)).eval()
    tokens, pos = torch.randn(2, 1, 12, 16)
    objects = Queries(torch.randn(1, 3, 16), pos=torch.randn(1, 3, 16))
    memory = Pyramid(tokens, Layout.unpadded(((3, 4),), 1), pos)
    expected = attention.mha(objects.tokens + objects.pos, tokens + pos, tokens)
    assert_close(attention(objects, memory), expected)
    assert not torch.allclose(attention(objects, Pyramid(tokens, memory.layout)), expected, atol=1e-3)


def test_levels_are_attended_jointly() -> None:
    """Two levels give what one level with the same tokens gives."""
    attention = build("dense", Slot(16, 2, levels=2)).eval()
    tokens = torch.randn(1, 10, 16)
    two = Pyramid(tokens, Layout.unpadded(((2, 3), (2, 2)), 1))
    one = Pyramid(tokens, Layout.unpadded(((2, 5),), 1))
    assert_close(attention(two.as_queries(), two), attention(one.as_queries(), one))


def test_gradient_of_key_bias_cancels() -> None:
    """A key bias adds the same to all scores of a query: the middle third of the packed bias is inert."""
    ours, _ = pair()
    query, key = torch.randn(2, 5, 24), torch.randn(2, 7, 24)
    ours(query, key, key).square().sum().backward()
    of_query, of_key, of_value = ours.in_proj_bias.grad.abs().chunk(3)
    assert of_key.max() < 1e-5
    assert of_query.min() > 1e-4
    assert of_value.min() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_logits_stay_finite_in_half_precision(dtype: torch.dtype) -> None:
    """The fused path subtracts the row maximum: logits beyond the exponent's range do no harm."""
    attention = MultiheadAttention(16, 2).to(dtype).eval()
    query, key = (torch.randn(1, n, 16, dtype=dtype) * 60 for n in (4, 6))
    q, k = (x @ w.T for x, w in zip((query, key), attention.in_proj_weight.chunk(3), strict=False))
    assert (q.float() @ k.float().transpose(1, 2)).max() > 200  # exp(200) overflows even float32
    output = attention(query, key, key)
    assert output.isfinite().all()
    exact = MultiheadAttention(16, 2).eval()
    exact.load_state_dict(attention.state_dict())
    expected = exact(query.float(), key.float(), key.float())
    # Near ties may fall to the other side in half precision, so the bulk is compared.
    error = (output.float() - expected).abs() / expected.abs().amax()
    assert error.median() < 0.02


def test_dropout_is_applied_to_weights_in_training_only() -> None:
    attention = build("dense", Slot(16, 2), dropout=0.5)
    memory = Pyramid(torch.randn(1, 12, 16), Layout.unpadded(((3, 4),), 1))

    def run() -> Tensor:
        return attention(memory.as_queries(), memory)

    assert not torch.equal(run(), run())
    attention.eval()
    assert torch.equal(run(), run())


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_rejects_dropout_out_of_range(dropout: float) -> None:
    with pytest.raises(UserError, match=r"dropout = .*must be in \[0, 1\)"):
        build("dense", Slot(16, 2), dropout=dropout)


def relative_bias(attention: Any, displacement: Tensor, level: int) -> Tensor:
    """Per head, the MLP of a level on the log-spaced displacement (x, y), as a fraction of half the image."""
    first, last = attention.relative_bias[level][0], attention.relative_bias[level][2]
    spaced = displacement.sign() * torch.log2(1 + 4 * displacement.abs()) / math.log2(8)
    return last.weight @ (first.weight @ spaced + first.bias).clamp(min=0)


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("path", ["fused", "recorded", "with dropout"])
def test_relative_bias_equals_a_loop(role: Role, path: str) -> None:
    torch.manual_seed(0)
    levels = 1 if role == Role.STAGE else 2
    masks = [torch.zeros(2, h, w, dtype=torch.bool) for h, w in ((3, 4), (2, 2))[:levels]]
    masks[0][1, :, 3:] = True
    layout = Layout.from_masks(masks)
    memory = Pyramid(torch.randn(2, layout.num_tokens, 8).double(), layout)
    queries = memory.as_queries()
    if role == Role.DECODER:
        queries = Queries(torch.randn(2, 5, 8).double(), torch.rand(2, 5, 4))
    attention: Any = build("dense", Slot(8, 2, levels, role), bias="relative", dropout=1e-12 * (path == "with dropout"))
    attention = attention.double()
    weights, biases = attention.mha.in_proj_weight.chunk(3), attention.mha.in_proj_bias.chunk(3)
    inputs = (queries.tokens, memory.tokens, memory.tokens)
    q, k, v = (x @ w.T + b for x, w, b in zip(inputs, weights, biases, strict=True))
    expected = torch.zeros_like(queries.tokens)
    level_of = [level for level, n in enumerate(layout.tokens_per_level) for _ in range(n)]
    assert layout.padding_mask is not None
    assert queries.reference_points is not None
    for b, i in itertools.product(range(2), range(queries.tokens.shape[1])):
        for head in (slice(0, 4), slice(4, 8)):
            keys = [j for j in range(layout.num_tokens) if not layout.padding_mask[b, j]]
            scores = []
            for j in keys:
                displacement = 2 * (queries.reference_points[b, i, :2].double() - layout.centers[b, j].double())
                bias = relative_bias(attention, displacement, level_of[j])[head.start // 4]
                scores.append(q[b, i, head] @ k[b, j, head] / 2 + bias)
            expected[b, i, head] = torch.stack(scores).softmax(0) @ v[b, keys][:, head]
    expected = attention.mha.out_proj(expected)
    if path == "recorded":
        with record(attention) as recording:
            actual = attention(queries, memory)
        assert recording[""][0]["bias"].std() > 0.01
    else:
        actual = attention(queries, memory)
    assert_close(actual, expected, atol=1e-10, rtol=0)


def test_without_bias_nothing_changes() -> None:
    torch.manual_seed(0)
    plain = build("dense", Slot(16, 2)).state_dict()
    torch.manual_seed(0)
    biased = build("dense", Slot(16, 2), bias="relative").state_dict()
    assert [name for name in biased if name not in plain] == [
        f"relative_bias.0.{part}" for part in ("0.weight", "0.bias", "2.weight")
    ]
    assert all(torch.equal(plain[name], biased[name]) for name in plain)


def test_relative_bias_gives_detr_reference_points() -> None:
    config = {"dim": 16, "heads": 2, "ffn": 16, "queries": 3, "encoder": {"layers": 1}}
    backbone = {"name": "swin_pico", "norm": "trained", "freeze": []}
    for bias, needed in (("none", False), ("relative", True)):
        decoder = {"layers": 2, "attention": {"name": "dense", "bias": bias}}
        model: Any = models.create("detr_r50", num_classes=2, **config, backbone=backbone, decoder=decoder)
        assert (model.queries.reference_points is not None) == needed
        assert model(torch.randn(1, 3, 64, 64)).boxes.isfinite().all()
