"""The inputs and the formula that implementations of DAT's attention are compared with."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from attnzoo.bench.operators import deform_kv_attn
from attnzoo.bench.operators.base import differentiate
from attnzoo.bench.operators.deform_kv_attn_peers import bias_in_flex_attention

CPU = torch.device("cpu")
CASE = deform_kv_attn.Case("odd", 5, 7, stride=2, heads=2, groups=1, head_dim=4)


def test_a_whole_displacement_reads_its_own_cell():
    table = torch.arange(2 * 9 * 13, dtype=torch.float64).view(2, 9, 13)
    queries = deform_kv_attn.query_positions(CASE, table)
    assert queries.tolist()[:8] == [[0, 0], [1, 0], [2, 0], [3, 0], [4, 0], [5, 0], [6, 0], [0, 1]]
    bias = deform_kv_attn.table_bias((queries[:, None] - queries)[None, None], table)
    for asking in (0, 8, 34):
        for seen in (0, 5, 34):
            x, y = (queries[asking] - queries[seen]).long().tolist()
            torch.testing.assert_close(bias[0, :, asking, seen], table[:, 4 + y, 6 + x])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_bias_given_to_flex_attention_is_the_same():
    case = deform_kv_attn.Case("odd", 5, 7, stride=2, heads=4, groups=2, batch=2, head_dim=16)
    query, key, value, keys, table = deform_kv_attn.table_inputs(case, "displaced", torch.float32, CPU)
    keys = keys * 1.5 - 2  # beyond the table too
    expected = deform_kv_attn.plain(
        deform_kv_attn.table_bias, deform_kv_attn.query_positions(case, keys), query, key, value, keys, table
    )
    got = flex_attention(query, key, value, score_mod=bias_in_flex_attention(case, keys, table))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_blocks_of_queries_give_the_whole(monkeypatch):
    monkeypatch.setattr(deform_kv_attn, "BLOCK", 8)
    for bias, made in (
        (deform_kv_attn.table_bias, deform_kv_attn.table_inputs),
        (deform_kv_attn.mlp_bias, deform_kv_attn.mlp_inputs),
    ):
        tensors = made(CASE, "displaced", torch.float64, CPU)
        slope = torch.randn(
            deform_kv_attn.output(CASE), dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        places = deform_kv_attn.query_positions(CASE, tensors[0])
        whole = differentiate(lambda *given, b=bias, p=places: deform_kv_attn.plain(b, p, *given), tensors, slope)
        torch.testing.assert_close(deform_kv_attn.authority(bias, CASE, tensors, slope), whole)


def test_keys_keep_off_the_knots_around_their_grid():
    *_, places = deform_kv_attn.tokens(deform_kv_attn.CASES[1], torch.float32, CPU, torch.Generator().manual_seed(0))
    assert places.shape == (8, 1, 49, 2)
    fraction = places - places.floor()
    assert fraction.min() > 0.015
    assert fraction.max() < 0.985
    assert (places[:, 0, 0].mean(0) - 3.5).abs().max() < 3


def test_the_published_sizes():
    cases = {case.name: case for case in deform_kv_attn.CASES}
    detector = cases["stage1-800x1333-b1"]
    assert (detector.queries, detector.keys) == (66_800, 1_050)
    assert deform_kv_attn.pairs(detector) * 4 / 2**20 > 500  # MiB of one copy of the bias, never to be held
    stage = cases["stage3-224-b8"]
    assert deform_kv_attn.table_macs(stage) == 8 * 12 * 196 * 196 * 2 * 32
    assert deform_kv_attn.mlp_macs(stage) - deform_kv_attn.table_macs(stage) == 8 * 3 * 196 * 196 * (
        2 * 32 + 32 * 32 + 32 * 4
    )
