"""`bench scaling`: its cases, skipped cases and fitted exponents."""

import pytest
import torch

from attnzoo import attention
from attnzoo.bench import scaling
from attnzoo.bench.scaling import Limits, ScalingCase, fit_power_law, fits, map_shapes, skip_reason
from attnzoo.geometry import Role

CPU = torch.device("cpu")


def make_row(name: str = "dense", tokens: int = 4096, seconds: float = 1.0, peak: int = 2**20, axis: str = "tokens"):
    return {
        "attention": name, "axis": axis, "x": tokens, "tokens": tokens, "pass": "forward",
        "seconds": [seconds, 2 * seconds, seconds], "peak_bytes": peak,
    }  # fmt: skip


def make_case(tokens: int) -> ScalingCase:
    return ScalingCase("dense", "tokens", tokens, ((1, tokens),), {})


@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("tokens", scaling.TOKENS)
def test_map_shapes_have_about_the_requested_tokens(tokens, levels):
    shapes = map_shapes(tokens, levels)
    assert len(shapes) == levels
    assert sum(h * w for h, w in shapes) == pytest.approx(tokens, rel=0.05)
    assert shapes[0] > shapes[-1] or levels == 1


def test_every_spatial_attention_is_measured_on_its_axes():
    names = scaling.spatial_attentions()
    assert {"deform", "dense", "ms_deform"} <= set(names) <= set(attention.names())
    cases = [case for group in scaling.scaling_cases(names, Limits()) for case in group]
    assert {case.attention for case in cases if case.axis == "tokens"} == set(names)
    assert max(case.tokens for case in cases) > 60_000
    assert sorted({case.x for case in cases if case.axis == "points"}) == [1, 2, 4, 8, 16]
    for case in cases:
        if case.axis == "levels":
            assert len(case.shapes) == case.x
            assert Role.ENCODER in attention.ATTENTIONS.get(case.attention).roles


def test_every_spatial_attention_runs():
    for case in next(scaling.scaling_cases(scaling.spatial_attentions(), Limits())):
        small = ScalingCase(case.attention, "tokens", 0, tuple((4, 4) for _ in case.shapes), case.options)
        module, pyramid = scaling.build_inputs(small, CPU)
        assert module(pyramid.as_queries(), pyramid).shape == pyramid.tokens.shape


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
    record = scaling.run(CPU, ["dense"], ["forward"], Limits(seconds=1e-9), seconds=0)
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
