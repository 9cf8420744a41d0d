"""Random numbers of training: those outside an attention do not depend on the attention."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.engine import ALONE, tiny_run
from torch import nn

from attnzoo.attention import Attention
from attnzoo.config.load import load_saved
from attnzoo.engine.seeding import isolate_attention_draws, stream_seed
from attnzoo.geometry import Role, Slot
from attnzoo.worker.tasks import build_task


class Drawing(Attention):
    """Draws `count` random numbers."""

    def __init__(self, count: int):
        super().__init__(Slot(8, 2, 1, Role.ENCODER, 0))
        self.count = count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.rand(self.count)
        return x


def masks(count: int, *, isolate: bool, training: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """The dropout masks before and after an attention that draws."""
    model = nn.Sequential(nn.Dropout(0.5), Drawing(count), nn.Dropout(0.5)).train(training)
    if isolate:
        isolate_attention_draws(model, torch.device("cpu"))
    torch.manual_seed(0)
    return model[0](torch.ones(64)), model[2](model[1](torch.ones(64)))


def test_draws_of_an_attention_do_not_shift_later_ones():
    without = masks(0, isolate=True)
    for count in (1, 1000):
        assert all(map(torch.equal, masks(count, isolate=True), without))
    assert not torch.equal(masks(1000, isolate=False)[1], masks(0, isolate=False)[1])
    assert not torch.equal(*without)


def test_two_attentions_are_followed_by_different_draws():
    model = nn.Sequential(Drawing(1), nn.Dropout(0.5), Drawing(1), nn.Dropout(0.5))
    isolate_attention_draws(model, torch.device("cpu"))
    first = model[1](model[0](torch.ones(64)))
    assert not torch.equal(first, model[3](model[2](torch.ones(64))))


def test_evaluation_draws_nothing():
    torch.manual_seed(0)
    expected = torch.rand(3)
    masks(0, isolate=True, training=False)
    torch.manual_seed(0)
    model = nn.Sequential(Drawing(0)).eval()
    isolate_attention_draws(model, torch.device("cpu"))
    model(torch.ones(2))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("seed", [0, 7])
def test_streams_of_a_seed_are_unrelated(seed):
    assert stream_seed(seed, 0) == seed
    assert len({stream_seed(seed, stream) for stream in range(5)} | {stream_seed(seed + 1, 1)}) == 6


def first_batch_and_weights(folder: Path, **changes: str) -> tuple[Any, dict[str, torch.Tensor]]:
    task = build_task(load_saved(tiny_run(folder, **changes).config), ALONE)
    return next(iter(task.batches(0, task.batches_per_epoch))), task.model.state_dict()


def test_a_stream_changes_order_and_augmentation_but_neither_weights_nor_data(tmp_path):
    options = {"data__augment": "{name: photometric, gain: 0.3}"}
    batch, weights = first_batch_and_weights(tmp_path / "a", **options)
    other, other_weights = first_batch_and_weights(tmp_path / "b", train__stream="1", **options)
    assert not torch.equal(batch.images, other.images)
    assert all(torch.equal(weights[key], other_weights[key]) for key in weights)
    again, _ = first_batch_and_weights(tmp_path / "c", train__stream="1", **options)
    assert torch.equal(again.images, other.images)


def test_variants_share_data_augmentation_and_common_weights(tmp_path):
    options = {"data__augment": "{name: photometric, gain: 0.3}", "data__dataset__seed": "run"}
    batch, weights = first_batch_and_weights(tmp_path / "a", **options)
    other, other_weights = first_batch_and_weights(tmp_path / "b", model__decoder__attention="{name: dense}", **options)
    assert torch.equal(batch.images, other.images)
    common = weights.keys() & other_weights.keys()
    assert len(common) > 100
    assert all(torch.equal(weights[key], other_weights[key]) for key in common)
    different_seed, _ = first_batch_and_weights(tmp_path / "c", seed="4", **options)
    assert not torch.equal(batch.images, different_seed.images)
