"""record(): what it records, under which name, and where it raises."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from attnzoo.attention import build, record
from attnzoo.attention.dense import MultiheadAttention
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot


class Decoder(nn.Module):
    """A layer with self-attention between objects and cross-attention of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attention = MultiheadAttention(16, 4)
        self.cross = nn.ModuleList(
            [build("dense", Slot(16, 4, 2, Role.DECODER)), build("ms_deform", Slot(16, 4, 2, Role.DECODER))]
        )

    def forward(self, tokens: Tensor, refs: Tensor, memory: Pyramid) -> Tensor:
        tokens = tokens + self.self_attention(tokens, tokens, tokens)
        for attention in self.cross:
            tokens = tokens + attention(Queries(tokens, refs), memory)
        return tokens


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Pyramid]:
    torch.manual_seed(0)
    masks = [torch.zeros(2, 4, 6, dtype=torch.bool), torch.zeros(2, 2, 3, dtype=torch.bool)]
    masks[0][1, :, 2:] = True
    masks[1][1, :, 1:] = True
    return torch.randn(2, 5, 16), torch.rand(2, 5, 4), Pyramid(torch.randn(2, 30, 16), Layout.from_masks(masks))


def test_captures_every_attention_by_its_name(inputs: tuple[Tensor, Tensor, Pyramid]) -> None:
    model = Decoder().eval()
    expected = model(*inputs)
    with record(model) as recording:
        assert_close(model(*inputs), expected)
    shapes = {
        name: [{key: tuple(t.shape) for key, t in entry.items()} for entry in entries]
        for name, entries in recording.items()
    }
    assert shapes == {
        "self_attention": [{"weights": (2, 4, 5, 5)}],
        "cross.0": [{"weights": (2, 4, 5, 30)}],
        "cross.1": [{"weights": (2, 5, 4, 2, 4), "locations": (2, 5, 4, 2, 4, 2), "reference_points": (2, 5, 4)}],
    }
    assert torch.equal(recording["cross.1"][0]["reference_points"], inputs[1])


def test_dense_weights_are_the_softmax_over_valid_tokens(inputs: tuple[Tensor, Tensor, Pyramid]) -> None:
    model, padding = Decoder().eval(), inputs[2].layout.padding_mask
    assert padding is not None
    with record(model) as recording:
        model(*inputs)
    weights = recording["cross.0"][0]["weights"]
    assert_close(weights.sum(-1), torch.ones(2, 4, 5))
    assert weights[1, :, :, padding[1]].max() == 0
    assert weights[1, :, :, ~padding[1]].min() > 0


def test_one_entry_per_call_and_none_afterwards(inputs: tuple[Tensor, Tensor, Pyramid]) -> None:
    model = Decoder()
    with record(model) as recording:
        model(*inputs)
        model(*inputs)
    model(*inputs)
    assert {len(entries) for entries in recording.values()} == {2}


def test_gradients_still_flow_and_entries_hold_no_graph(inputs: tuple[Tensor, Tensor, Pyramid]) -> None:
    model = Decoder()
    parameters = list(model.parameters())
    expected = torch.autograd.grad(model(*inputs).square().sum(), parameters)
    with record(model) as recording:
        actual = torch.autograd.grad(model(*inputs).square().sum(), parameters)
    assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    assert not any(t.requires_grad for entries in recording.values() for entry in entries for t in entry.values())


def test_is_disabled_after_an_error(inputs: tuple[Tensor, Tensor, Pyramid]) -> None:
    model = Decoder()
    with pytest.raises(ZeroDivisionError), record(model):
        raise ZeroDivisionError
    assert not any(module.recording for module in model.modules() if isinstance(module, MultiheadAttention))


def test_rejects_compiled_models(inputs: tuple[Tensor, Tensor, Pyramid]) -> None:
    with pytest.raises(RuntimeError, match="compiled models"), record(torch.compile(Decoder(), backend="eager")):
        pass
    model = Decoder()
    model.cross[0].compile(backend="eager")
    with pytest.raises(RuntimeError, match="compiled models"), record(model):
        pass


def test_rejects_compilation_and_export(inputs: tuple[Tensor, Tensor, Pyramid]) -> None:
    model = Decoder()
    with record(model):
        with pytest.raises(Exception, match=r"record\(\) does not work under torch"):
            torch.compile(lambda: model(*inputs), backend="eager", fullgraph=True)()
        with pytest.raises(Exception, match=r"record\(\) does not work under torch"):
            torch.export.export(model, inputs)
