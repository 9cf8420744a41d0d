"""Records of attentions on one image: kinds, entropy, offsets."""

import math

import numpy as np
import pytest
import torch
from support.records import recorded

from attnzoo import attention
from attnzoo.geometry import Layout, Pyramid, Role, Slot
from attnzoo.inference import records
from attnzoo.inference.records import (
    Kind,
    grid_offsets,
    kind_of,
    normalised_entropy,
    predicted_offsets,
    record_attentions,
)

KINDS = {
    "ms_deform": Kind.POINTS,
    "deform": Kind.POINTS,
    "dat": Kind.GRID,
    "dense": Kind.MAP,
    "window": Kind.WINDOW,
    "neighborhood": Kind.WINDOW,
}


@pytest.mark.parametrize("role", [Role.ENCODER, Role.DECODER])
@pytest.mark.parametrize("name", attention.names())
def test_every_attention_is_recorded_and_can_be_drawn(name: str, role: Role) -> None:
    if role not in attention.ATTENTIONS.get(name).roles:
        pytest.skip(f"{name} has no role {role}")
    record, module = recorded(name, role)
    assert record.kind == KINDS.get(name, record.kind)
    assert record.kind is not None
    assert record.name == f"{role}.0"
    queries = 60 if role == Role.ENCODER else 5
    heads = 1 if name in ("conv", "dcn") else 4
    assert record.weights_per_query.shape[:2] == (queries, heads)
    np.testing.assert_allclose(record.weights_per_query.sum(-1), 1, atol=1e-5)
    assert 0 < record.entropy() <= 1 + 1e-6
    assert not module.recording


def test_entropy_of_uniform_and_one_hot_weights() -> None:
    assert normalised_entropy(np.full((3, 2, 8), 1 / 8)) == pytest.approx(1)
    assert normalised_entropy(np.eye(8)[:, None]) == pytest.approx(0)
    half = np.zeros((1, 1, 4))
    half[..., :2] = 0.5
    assert normalised_entropy(half) == pytest.approx(math.log(2) / math.log(4))
    assert math.isnan(normalised_entropy(np.ones((3, 2, 1))))


def test_kinds_of_a_plugin_are_known_by_shapes() -> None:
    points = np.zeros((5, 4, 2, 3))
    assert kind_of(points, np.zeros((5, 4, 2, 3, 2)), 60) == Kind.POINTS
    assert kind_of(np.zeros((4, 5, 60)), None, 60) == Kind.MAP
    assert kind_of(np.zeros((4, 5, 7)), np.zeros((7, 2, 2)), 60) == Kind.GRID
    assert kind_of(np.zeros((5, 4, 9)), np.zeros((5, 9, 2)), 60) == Kind.WINDOW
    assert kind_of(np.zeros((4, 5, 59)), None, 60) is None
    assert kind_of(points, np.zeros((5, 4, 2)), 60) is None


@pytest.mark.parametrize("boxes", [False, True])
def test_predicted_offsets_are_those_of_the_layer(boxes: bool) -> None:
    record, module = recorded("ms_deform", Role.DECODER, boxes, constant_offsets=True)
    offsets = predicted_offsets(record)
    assert offsets is not None
    bias = module.sampling_offsets.bias.detach().view(4, 2, 4, 2).numpy()
    np.testing.assert_allclose(offsets, np.broadcast_to(bias, (5, 4, 2, 4, 2)), atol=1e-4)


def test_initial_offsets_are_those_of_a_new_layer() -> None:
    module = attention.build("ms_deform", Slot(16, 4, 1), points=3)
    bias = module.sampling_offsets.bias.detach().view(4, 1, 3, 2)[:, 0].numpy()
    initial = module.initial_offsets()[:, 0].numpy()
    np.testing.assert_allclose(initial, bias, atol=1e-6)
    assert np.abs(initial).max(-1).tolist() == [pytest.approx([1, 2, 3])] * 4


@pytest.mark.parametrize("convention", ["corrected", "v1"])
def test_keys_without_offsets_are_the_regular_grid(convention: str) -> None:
    still = grid_offsets(recorded("dat", convention=convention, offsets=False, bias="none")[0])
    moved = grid_offsets(recorded("dat", convention=convention)[0])
    assert still is not None
    assert moved is not None
    assert max(np.abs(of_level).max() for of_level in still) < 1e-5
    assert min(np.abs(of_level).max() for of_level in moved) > 0.05


def test_attention_too_large_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_WEIGHTS", 100)
    with pytest.raises(ValueError, match="not enough values"):
        recorded("dense")


def test_padded_images_are_refused_and_recording_ends() -> None:
    module = attention.build("dense", Slot(16, 4, 1))
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, :, 3] = True
    memory = Pyramid(torch.randn(1, 16, 16), Layout.from_masks([mask]))
    with pytest.raises(ValueError, match="without padding"), record_attentions(module, lambda record: None):
        module(memory.as_queries(), memory)
    assert not module.recording
    assert not module.mha.recording
    assert not module._forward_hooks
