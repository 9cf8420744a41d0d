"""`bench scaling`: its cases, skipped cases and fitted exponents."""

import dataclasses

import pytest
import torch

from attnzoo import attention
from attnzoo.bench import scaling
from attnzoo.bench.crossings import crossings, find_crossing
from attnzoo.bench.scaling import Limits, ScalingCase, fit_power_law, fits, map_shapes, skip_reason
from attnzoo.bench.tables import scaling_tables
from attnzoo.errors import UserError

CPU = torch.device("cpu")


def make_row(name: str = "dense", tokens: int = 4096, seconds: float = 1.0, peak: int = 2**20, axis: str = "tokens"):
    return {
        "attention": name, "role": "encoder", "axis": axis, "queries": tokens,
        "shapes": [[1, tokens]], "flops": tokens**2, "x": tokens, "tokens": tokens, "pass": "forward",
        "seconds": [seconds, 2 * seconds, seconds], "peak_bytes": peak,
    }  # fmt: skip


def make_case(tokens: int) -> ScalingCase:
    return ScalingCase("dense", "encoder", "tokens", tokens, tokens, ((1, tokens),), {})


@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("tokens", scaling.TOKENS)
def test_map_shapes_have_about_the_requested_tokens(tokens, levels):
    shapes = map_shapes(tokens, levels)
    assert len(shapes) == levels
    assert sum(h * w for h, w in shapes) == pytest.approx(tokens, rel=0.05)
    assert shapes[0] > shapes[-1] or levels == 1


def all_cases() -> list[ScalingCase]:
    attentions = scaling.select_attentions(attention.names(), scaling.ROLES)
    return [case for group in scaling.scaling_cases(attentions, Limits()) for case in group]


def test_every_attention_is_measured_in_its_roles_and_on_its_axes():
    cases = all_cases()
    for role, role_names in (
        ("encoder", scaling.attentions_in("encoder")),
        ("decoder", scaling.attentions_in("decoder")),
    ):
        roles = {"encoder", "stage"} if role == "encoder" else {"decoder"}
        measured = [case for case in cases if case.role in roles]
        assert {case.attention for case in measured if case.axis == "tokens"} == set(role_names)
        assert max(case.tokens for case in measured) > 60_000
        assert sorted({case.x for case in measured if case.axis == "points"}) == [1, 2, 4, 8, 16]
        assert {case.x for case in measured if case.axis == "levels"} == {1, 2, 3, 4, 5}
    assert {"conv", "deform", "dense", "ms_deform"} <= set(scaling.attentions_in("encoder"))
    assert "conv" not in scaling.attentions_in("decoder")
    assert {case.axis for case in cases if case.role != "decoder"} == {"tokens", "points", "levels"}
    for case in cases:
        if case.axis == "levels":
            assert len(case.shapes) == case.x
        if case.axis == "queries":
            assert case.queries == case.x
        elif case.role == "decoder":
            assert case.queries == scaling.OBJECT_QUERIES
        else:
            assert case.queries == case.tokens


def test_every_attention_runs_in_its_roles():
    attentions = scaling.select_attentions(attention.names(), scaling.ROLES)
    first = {(case.role, case.attention): case for case in reversed(all_cases()) if case.axis == "tokens"}
    assert len(first) == sum(map(len, attentions.values()))
    for case in first.values():
        shapes = tuple((4, 4) for _ in case.shapes)
        queries = 5 if case.role == "decoder" else 16 * len(shapes)
        small = dataclasses.replace(case, shapes=shapes, queries=queries)
        module, objects, pyramid = scaling.build_inputs(small, CPU)
        assert module(objects, pyramid).shape == (1, queries, scaling.DIM)
        assert scaling.count_flops(module, objects, pyramid) > 0


def test_roles_without_the_attention_are_rejected():
    assert scaling.select_attentions(["conv", "dense"], ["decoder"]) == {"decoder": ["dense"]}
    with pytest.raises(UserError, match="--roles decoder: conv: no attention for this role"):
        scaling.select_attentions(["conv"], ["decoder"])


def test_flops_of_deformable_cross_attention_do_not_grow_with_the_map_but_with_queries():
    """Values aside, sampling is N·K·C in the decoder and dense attention N·S·C."""

    def flops(name: str, tokens: int, queries: int) -> int:
        options = {"level": 0} if name == "deform" else {}
        case = ScalingCase(name, "decoder", "tokens", tokens, queries, map_shapes(tokens, 4), options)
        return scaling.count_flops(*scaling.build_inputs(case, CPU))

    values = {tokens: sum(h * w for h, w in map_shapes(tokens, 4)) * scaling.DIM**2 for tokens in (1024, 4096)}
    deformable = [flops("ms_deform", tokens, 300) - values[tokens] for tokens in (1024, 4096)]
    assert deformable[0] == deformable[1] > 0
    dense = [flops("dense", tokens, 300) - 2 * values[tokens] for tokens in (1024, 4096)]
    assert dense[1] > 2 * dense[0]
    assert flops("ms_deform", 1024, 600) - values[1024] == 2 * deformable[0]


def test_crossing_of_two_power_laws():
    """x² · 1e-6 and x · 1e-3 are equal at 1000."""
    sizes = [100, 400, 1600, 6400]
    quadratic, linear = {x: 1e-6 * x**2 for x in sizes}, {x: 1e-3 * x for x in sizes}
    assert find_crossing(quadratic, linear) == (pytest.approx(1000), True)
    assert find_crossing(linear, quadratic) == (pytest.approx(1000), False)
    elsewhere = {x: 1e-3 * x for x in (150, 700, 3000)}  # other sizes, as of single-level attentions
    assert find_crossing(quadratic, elsewhere) == (pytest.approx(1000), True)
    assert find_crossing(linear, {x: 2 * y for x, y in linear.items()}) is None
    assert find_crossing(linear, linear) is None
    assert find_crossing({100: 1.0}, linear) is None
    back = {100: 2.0, 400: 0.3, 1600: 2.0, 6400: 100.0}  # dips below and rises again: cheaper at neither end
    assert find_crossing(linear, back) is None


def test_crossings_are_named_by_role_axis_pass_and_cost():
    sizes = (1024, 4096, 16384)
    rows = [make_row("dense", n, 1e-6 * n**2, 64 * n) for n in sizes]
    rows += [make_row("ms_deform", n, 4e-3 * n, 128 * n) for n in sizes]
    (found,) = crossings(rows)
    assert found.pop("x") == pytest.approx(4000)
    assert found == {
        "role": "encoder", "axis": "tokens", "pass": "forward", "cost": "time",
        "cheaper_below": "dense", "cheaper_above": "ms_deform",
    }  # fmt: skip


def test_time_per_flop_is_compared_with_a_convolution():
    rows = [make_row("conv", 4096, 1e-3), make_row("window", 4096, 3e-3), make_row("window", 16384, 1.0)]
    record = {"rows": rows, "fits": [], "crossings": [], "skipped": [], "memory": ""}
    table = next(table for table in scaling_tables(record) if table.title.startswith("time per FLOP"))
    assert [(row[1], row[2], row[-1]) for row in table.rows] == [("conv", "4,096", "1.00"), ("window", "4,096", "3.00")]


def test_cases_beyond_the_limits_are_skipped():
    before = [make_row(seconds=1.0, peak=2**30)]
    case = make_case(8192)
    assert skip_reason(case, "forward", before, Limits(seconds=4.1), free_bytes=10 * 2**30) is None
    assert "expected to take 4 s" in skip_reason(case, "forward", before, Limits(seconds=3.9), free_bytes=10 * 2**30)
    reason = skip_reason(case, "forward", before, Limits(), free_bytes=9 * 2**29)
    assert "expected to need 4.0 GiB of 4.5 GiB" in reason
    assert skip_reason(case, "forward+backward", before, Limits(seconds=1), free_bytes=0) is None  # no earlier row


def test_small_limit_skips_the_larger_case(monkeypatch):
    monkeypatch.setattr(scaling, "scaling_cases", lambda *_: [[make_case(16)], [make_case(32)]])
    record = scaling.run(CPU, {"encoder": ["dense"]}, ["forward"], Limits(seconds=1e-9), seconds=0)
    assert [row["tokens"] for row in record["rows"]] == [16]
    assert [(skipped["x"], skipped["pass"]) for skipped in record["skipped"]] == [(32, "forward")]


def test_exponents_are_fitted_from_4k_tokens_on():
    sizes = [1024, 2048, 4096, 8192, 16384]
    rows = [make_row(tokens=n, seconds=n**2 if n >= 4096 else 1e12, peak=7 * n) for n in sizes]
    (fit,) = fits(rows)
    assert fit["time"]["exponent"] == pytest.approx(2)
    assert fit["memory"]["exponent"] == pytest.approx(1)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_power_law_fit(exponent):
    sizes = [4096, 8192, 16384, 65536]
    law = fit_power_law(sizes, [3e-6 * size**exponent for size in sizes])
    assert law.exponent == pytest.approx(exponent, abs=1e-12)
    assert law.scale == pytest.approx(3e-6)
    assert law.exponent_stderr == pytest.approx(0, abs=1e-6)
    noisy = fit_power_law(
        sizes, [size**exponent * factor for size, factor in zip(sizes, (1, 1.1, 0.9, 1), strict=True)]
    )
    assert noisy.exponent == pytest.approx(exponent, abs=0.15)
    assert noisy.exponent_stderr > 0.01


def test_standard_error_of_the_exponent_by_hand():
    law = fit_power_law([1, 2, 4], [1, 2, 8])  # in powers of two: (0, 0), (1, 1), (2, 3)
    assert law.exponent == pytest.approx(1.5)
    assert law.exponent_stderr == pytest.approx((1 / 6 / 2) ** 0.5)  # residuals 1/6, -1/3, 1/6; one degree of freedom


def test_no_power_law_from_one_size():
    assert fit_power_law([4096], [1.0]) is None
    assert fit_power_law([4096, 4096], [1.0, 2.0]) is None
    assert fit_power_law([1, 2], [1.0, 2.0]).exponent_stderr is None
