"""Measured cost against manual counts."""

import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attnzoo import models
from attnzoo.attention import build
from attnzoo.geometry import Layout, Pyramid, Role, Slot
from attnzoo.models.cost import ModuleCost, count_macs, count_modules, measure


class Small(nn.Module):
    """A convolution, a buffer, a frozen layer, and attention over 35 tokens with 2 heads."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.frozen = nn.Linear(8, 8, bias=False).requires_grad_(False)
        self.register_buffer("table", torch.zeros(1000))
        self.calls: list[tuple[bool, bool, int]] = []

    def forward(self, images, mask=None):
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

        def forward(self, images, mask=None):
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

    def forward(self, images, mask=None):
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


@pytest.mark.parametrize(("height", "width"), [(9, 14), (3, 8), (7, 7)])
def test_neighborhood_needs_kernel_squared_keys_per_query(height: int, width: int) -> None:
    """Keys counted pixel by pixel: the kernel, clipped to maps that are smaller."""
    kernel, dim = 5, 16
    attention = build("neighborhood", Slot(dim, 2, 1, Role.STAGE), kernel=kernel)
    layout = Layout.unpadded([(height, width)], 1)
    pairs = 0
    for y in range(height):
        for x in range(width):
            top, left = (
                min(max(position - kernel // 2, 0), max(size - kernel, 0))
                for position, size in ((y, height), (x, width))
            )
            pairs += sum(top <= row < top + kernel for row in range(height)) * sum(
                left <= column < left + kernel for column in range(width)
            )
    assert attention.flops(layout, layout) == 4 * height * width * dim**2 + 2 * pairs * dim


def test_windows_that_fit_need_no_padding() -> None:
    attention = build("window", Slot(16, 2, 1, Role.STAGE), window=4, shift=2)
    fits, padded = Layout.unpadded([(8, 12)], 1), Layout.unpadded([(7, 9)], 1)
    assert attention.flops(fits, fits) == 4 * 96 * 16**2 + 2 * 96 * 16 * 16
    assert attention.extra_flops(fits, fits) == 0
    assert attention.flops(padded, padded) == 4 * 63 * 16**2 + 2 * 63 * 16 * 16
    assert attention.extra_flops(padded, padded) == 3 * (96 - 63) * 16**2 + 2 * (96 - 63) * 16 * 16


class Twice(nn.Module):
    """A shared linear layer that runs twice, inside and outside of `inner`, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4, bias=False)
        self.inner = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 4, bias=False), self.shared)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared(self.inner(x)) @ torch.diag(self.scale)


def test_modules_sum_to_the_model() -> None:
    x = torch.rand(1, 3, 4)
    counted = count_modules(Twice(), x, group=lambda path: path.split(".")[0])
    assert counted == {
        "": ModuleCost(4, 3 * 4 * 4, 0),
        "shared": ModuleCost(16, 2 * 3 * 4 * 4, 0),
        "inner": ModuleCost(64, 2 * 3 * 4 * 8, 0),
    }
    assert sum(cost.macs for cost in counted.values()) == count_macs(Twice(), x)


def test_tiles_of_neighborhoods_are_counted_apart() -> None:
    """In a model too, and without hooks left behind."""
    with torch.device("meta"):
        model = models.create("dat_pp_tiny").eval()
        images = torch.empty(1, 3, 64, 96)
        cost = count_modules(model, images)[""]
        assert cost.macs + cost.extra_macs == count_macs(model, images)
    tiles = 0
    for stage, (size, reduction) in enumerate(zip(((64, 96),) * 4, (4, 8, 16, 32), strict=True)):
        layout = Layout.unpadded([(size[0] // reduction, size[1] // reduction)], 1)
        for block in model.trunk.stages[stage].blocks:
            tiles += block.attention.extra_flops(layout, layout)
    assert cost.extra_macs == tiles > 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_attention_inside_another_is_counted_once() -> None:
    class Wrapper(type(build("dense", Slot(16, 2)))):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(Slot(16, 2, 1, Role.STAGE))
            self.inside = build("neighborhood", self.slot, kernel=3)

        def forward(self, queries, memory):
            return self.inside(queries, memory)

        def extra_flops(self, queries, memory):
            return self.inside.extra_flops(queries, memory)

    memory = Pyramid(torch.rand(1, 35, 16), Layout.unpadded([(5, 7)], 1))
    cost = count_modules(Wrapper(), memory.as_queries(), memory)[""]
    assert cost.macs == build("neighborhood", Slot(16, 2, 1, Role.STAGE), kernel=3).flops(memory.layout, memory.layout)
