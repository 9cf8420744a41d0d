"""Benchmark cases, inputs and reference of DAT's attention."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from attnzoo.bench.operators import deform_kv_attn
from attnzoo.bench.operators.base import UnavailableError, check_flex_attention, forward_backward

CPU = torch.device("cpu")
CASE = deform_kv_attn.Case("odd", 5, 7, stride=2, heads=2, groups=1, head_dim=4)


def test_whole_displacements_read_one_cell_of_the_table():
    table = torch.arange(2 * 9 * 13, dtype=torch.float64).view(2, 9, 13)
    positions = deform_kv_attn.query_positions(CASE, table)
    assert positions.tolist()[:8] == [[0, 0], [1, 0], [2, 0], [3, 0], [4, 0], [5, 0], [6, 0], [0, 1]]
    bias = deform_kv_attn.table_bias((positions[:, None] - positions)[None, None], table)
    for query in (0, 8, 34):
        for key in (0, 5, 34):
            x, y = (positions[query] - positions[key]).long().tolist()
            torch.testing.assert_close(bias[0, :, query, key], table[:, 4 + y, 6 + x])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_score_mod_of_flex_attention_adds_the_same_bias():
    case = deform_kv_attn.Case("odd", 5, 7, stride=2, heads=4, groups=2, batch=2, head_dim=16)
    query, key, value, key_positions, table = deform_kv_attn.table_inputs(case, "displaced", torch.float32, CPU)
    key_positions = key_positions * 1.5 - 2  # also outside the table
    positions = deform_kv_attn.query_positions(case, key_positions)
    expected = deform_kv_attn.naive_attention(
        deform_kv_attn.table_bias, positions, query, key, value, key_positions, table
    )
    score_mod = deform_kv_attn.table_score_mod(case, key_positions, table)
    actual = flex_attention(query, key, value, score_mod=score_mod)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_flex_attention_on_a_cpu_is_forward_and_not_in_float64():
    query = torch.zeros(1)
    check_flex_attention(query)
    with pytest.raises(UnavailableError, match="no backward pass for cpu; --passes forward measures it"):
        check_flex_attention(query.requires_grad_())
    with pytest.raises(UnavailableError, match="no float64 kernel for cpu"):
        check_flex_attention(query.detach().double())


def test_reference_in_blocks_of_queries(monkeypatch):
    monkeypatch.setattr(deform_kv_attn, "QUERY_BLOCK", 8)
    for bias, inputs in (
        (deform_kv_attn.table_bias, deform_kv_attn.table_inputs),
        (deform_kv_attn.mlp_bias, deform_kv_attn.mlp_inputs),
    ):
        tensors = inputs(CASE, "displaced", torch.float64, CPU)
        grad_output = torch.randn(
            deform_kv_attn.output_shape(CASE), dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        positions = deform_kv_attn.query_positions(CASE, tensors[0])
        unblocked = forward_backward(
            lambda *tensors, b=bias, p=positions: deform_kv_attn.naive_attention(b, p, *tensors), tensors, grad_output
        )
        torch.testing.assert_close(deform_kv_attn.reference(bias, CASE, tensors, grad_output), unblocked)


def test_keys_stay_away_from_whole_pixels_and_near_their_grid():
    g = torch.Generator().manual_seed(0)
    *_, positions = deform_kv_attn.make_qkv(deform_kv_attn.CASES[1], torch.float32, CPU, g)
    assert positions.shape == (8, 1, 49, 2)
    fraction = positions - positions.floor()
    assert fraction.min() > 0.015
    assert fraction.max() < 0.985
    assert (positions[:, 0, 0].mean(0) - 3.5).abs().max() < 3


def test_published_sizes():
    cases = {case.name: case for case in deform_kv_attn.CASES}
    detector = cases["stage1-800x1333-b1"]
    assert (detector.queries, detector.keys) == (66_800, 1_050)
    assert deform_kv_attn.pairs(detector) * 4 / 2**20 > 500  # MiB of one copy of the bias
    stage = cases["stage3-224-b8"]
    assert deform_kv_attn.table_macs(stage) == 8 * 12 * 196 * 196 * 2 * 32
    assert deform_kv_attn.mlp_macs(stage) - deform_kv_attn.table_macs(stage) == 8 * 3 * 196 * 196 * (
        2 * 32 + 32 * 32 + 32 * 4
    )
