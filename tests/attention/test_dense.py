"""Dense attention against torch's module, and its numerics for large logits."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from attnzoo.attention import build
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
