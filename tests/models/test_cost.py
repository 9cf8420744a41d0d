"""Measured cost against manual counts."""

import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attnzoo.models.cost import count_macs, measure


class Small(nn.Module):
    """A convolution, a buffer, a frozen layer, and attention over 35 tokens with 2 heads."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.frozen = nn.Linear(8, 8, bias=False).requires_grad_(False)
        self.register_buffer("table", torch.zeros(1000))
        self.calls: list[tuple[bool, bool, int]] = []

    def forward(self, images, mask):
        self.calls.append((self.training, torch.is_grad_enabled(), len(images)))
        tokens = self.frozen(self.norm(self.conv(images)).flatten(2).transpose(1, 2))
        heads = tokens.unflatten(-1, (2, 4)).transpose(1, 2)
        padding = None if mask is None else ~mask.flatten(1)[:, None, None]
        return F.scaled_dot_product_attention(heads, heads, heads, attn_mask=padding)


MACS = 35 * 8 * 27 + 35 * 8 * 8 + 2 * 35 * 35 * 8  # convolution, linear layer, attention


@pytest.mark.parametrize("masked", [False, True])
def test_counts_by_hand(masked):
    images = torch.rand(4, 3, 5, 7)
    cost = measure(Small(), images, torch.zeros(4, 5, 7, dtype=torch.bool) if masked else None, seconds=0)
    assert cost.params == (8 * 27 + 8) + 2 * 8 + 8 * 8
    assert cost.trainable == cost.params - 8 * 8
    assert cost.gflops == pytest.approx(MACS / 1e9, rel=1e-12)


def test_known_model():
    """ResNet-18 at 224 x 224: 11,689,512 parameters and 1.814 GFLOPs, as published."""
    from torchvision.models import resnet18

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = resnet18()

        def forward(self, images, mask):
            return self.body(images)

    cost = measure(Detector(), torch.rand(1, 3, 224, 224), seconds=0)
    assert cost.params == cost.trainable == 11_689_512
    assert cost.gflops == pytest.approx(1.814, abs=5e-4)


def test_fused_multihead_attention_is_counted():
    attention = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = torch.rand(2, 7, 16)
    with torch.inference_mode():
        assert count_macs(attention, x, x, x) == 4 * 2 * 7 * 16 * 16 + 2 * 2 * 7 * 7 * 16
    assert torch.backends.mha.get_fastpath_enabled()


def test_training_modes_are_restored_even_after_an_error():
    model = Small().train()
    model.norm.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    measure(model, torch.rand(2, 3, 5, 7), seconds=0)
    assert model.training
    assert not model.norm.training
    assert not any(training for training, _, _ in model.calls)
    assert not any(grad for _, grad, _ in model.calls[1:])  # the first call counts MACs, the others are timed
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with pytest.raises(RuntimeError):
        measure(model, torch.rand(2, 4, 5, 7))
    assert model.training
    assert not model.norm.training


class Sleeper(nn.Module):
    """Sleeps for given times: once for counting MACs, three times for warm-up, then for the timed calls."""

    def __init__(self, timed):
        super().__init__()
        self.waits = iter([0.0, 0.3, 0.3, 0.3, *timed])

    def forward(self, images, mask):
        time.sleep(next(self.waits))


def test_time_is_the_median_per_image_after_warm_up():
    cost = measure(Sleeper([0.02] * 4 + [0.06] * 3 + [0.12] * 3), torch.rand(4, 3, 2, 2), seconds=0)
    assert cost.ms == pytest.approx(60 / 4, rel=0.5)
    assert cost.params == cost.gflops == 0


def test_number_of_timed_calls_depends_on_the_time_budget():
    quick = Sleeper([0.0] * 100)
    measure(quick, torch.rand(1, 3, 2, 2), seconds=60)
    assert next(quick.waits, None) is None
    slow = Sleeper([0.02] * 100)
    measure(slow, torch.rand(1, 3, 2, 2), seconds=0.3)
    assert 80 <= len(list(slow.waits)) <= 90
