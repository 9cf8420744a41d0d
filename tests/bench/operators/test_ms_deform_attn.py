"""Benchmark cases and inputs of multi-scale deformable attention, unfused and fused."""

import pytest
import torch

from attnzoo.bench.operators import ms_deform_attn_fused as fused
from attnzoo.bench.operators.ms_deform_attn import MS_DEFORM_ATTN, Case, inputs

CPU = torch.device("cpu")
TINY = Case("tiny", ((5, 6), (3, 2)), batch=2, queries=7, heads=2, head_dim=8, points=3)


def test_fused_inputs_sample_the_same_points():
    value, references, offsets, logits = fused.inputs(TINY, "local", torch.float64, CPU)
    _, locations, weights = inputs(TINY, "local", torch.float64, CPU)
    seen = {}

    def unfused(value, locations, weights):
        seen.update(locations=locations, weights=weights)
        return value

    fused.with_pytorch_prologue(unfused, TINY)(value, references, offsets, logits)
    torch.testing.assert_close(seen, {"locations": locations, "weights": weights})


@pytest.mark.parametrize("pattern", MS_DEFORM_ATTN.patterns)
def test_points_stay_away_from_pixel_centres(pattern):
    _, locations, weights = inputs(TINY, pattern, torch.float32, CPU)
    pixels = locations.double() * torch.tensor([(w, h) for h, w in TINY.shapes])[:, None] - 0.5
    fraction = pixels - pixels.floor()
    assert fraction.min() > 0.015
    assert fraction.max() < 0.985
    assert weights.sum((-1, -2)).allclose(torch.ones(1))


def test_local_points_are_around_the_pixel_of_their_query():
    case = Case("grid", ((40, 50), (20, 25)))
    _, locations, _ = inputs(case, "local", torch.float32, CPU)
    finest = locations[0, :2000, :, 0] * torch.tensor([50, 40])
    rows, columns = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(50) + 0.5, indexing="ij")
    offsets = finest - torch.stack([columns, rows], -1).reshape(2000, 1, 1, 2)
    assert offsets.std().item() == pytest.approx(2, abs=0.1)
    assert offsets.mean().item() == pytest.approx(0, abs=0.1)


def test_published_sizes():
    cases = MS_DEFORM_ATTN.cases
    assert cases["encoder-800x1066-b1"].tokens == 17821
    assert cases["encoder-800x1333-b4"].tokens == 22223
    assert {case.batch for case in cases.values()} == {1, 2, 4}
    assert cases["decoder-b2"].num_queries == 300
    assert set(MS_DEFORM_ATTN.cpu_cases) <= set(cases)
