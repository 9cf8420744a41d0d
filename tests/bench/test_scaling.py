"""`bench scaling` on small maps: what is measured, what is left out, what is fitted."""

import json

import pytest
import torch

from attnzoo import __main__ as attnzoo_main
from attnzoo import attention
from attnzoo.bench import scaling
from attnzoo.bench.scaling import Limits, Setup, fits, refusal, shapes_for
from attnzoo.geometry import Role

CPU = torch.device("cpu")


def row(name: str = "dense", tokens: int = 4096, seconds: float = 1.0, peak: int = 2**20, axis: str = "tokens"):
    return {
        "attention": name, "axis": axis, "x": tokens, "tokens": tokens, "pass": "forward",
        "seconds": [seconds, 2 * seconds, seconds], "peak_bytes": peak,
    }  # fmt: skip


def setup(tokens: int) -> Setup:
    return Setup("dense", "tokens", tokens, ((1, tokens),), {})


@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("tokens", scaling.TOKENS)
def test_pyramids_have_about_the_tokens_asked_for(tokens, levels):
    shapes = shapes_for(tokens, levels)
    assert len(shapes) == levels
    assert sum(h * w for h, w in shapes) == pytest.approx(tokens, rel=0.05)
    assert shapes[0] > shapes[-1] or levels == 1


def test_every_attention_on_a_grid_is_set_up_on_every_axis():
    names = scaling.grid_attentions()
    assert {"deform", "dense", "ms_deform"} <= set(names) <= set(attention.names())
    every = [made for group in scaling.setups(names, Limits()) for made in group]
    assert {made.attention for made in every if made.axis == "tokens"} == set(names)
    assert max(made.tokens for made in every) > 60_000
    assert sorted({made.x for made in every if made.axis == "points"}) == [1, 2, 4, 8, 16]
    for made in every:
        if made.axis == "levels":
            assert len(made.shapes) == made.x
            assert Role.ENCODER in attention.ATTENTIONS.get(made.attention).roles


def test_every_attention_can_be_made_and_run():
    for made in next(scaling.setups(scaling.grid_attentions(), Limits())):
        small = Setup(made.attention, "tokens", 0, tuple((4, 4) for _ in made.shapes), made.options)
        module, pyramid = scaling.make(small, CPU)
        assert module(pyramid.as_queries(), pyramid).shape == pyramid.tokens.shape


def test_what_would_take_too_long_or_too_much_is_left_out():
    before = [row(seconds=1.0, peak=2**30)]
    assert refusal(setup(8192), "forward", before, Limits(seconds=4.1), free=10 * 2**30) is None
    assert "expected to take 4 s" in refusal(setup(8192), "forward", before, Limits(seconds=3.9), free=10 * 2**30)
    assert "expected to need 4.0 GiB of 4.5 GiB" in refusal(setup(8192), "forward", before, Limits(), free=9 * 2**29)
    assert refusal(setup(8192), "forward+backward", before, Limits(seconds=1), free=0) is None  # nothing known yet


def test_exponents_are_fitted_from_4k_tokens_on():
    sizes = [1024, 2048, 4096, 8192, 16384]
    rows = [row(tokens=n, seconds=n**2 if n >= 4096 else 1e12, peak=7 * n) for n in sizes]
    (fit,) = fits(rows)
    assert fit["time"]["exponent"] == pytest.approx(2)
    assert fit["memory"]["exponent"] == pytest.approx(1)


def test_from_the_command_line_to_the_plot(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scaling, "TOKENS", (64, 128))
    raw, plot = tmp_path / "scaling.json", tmp_path / "scaling.png"
    command = ["bench", "scaling", "--attentions", "ms_deform", "--seconds", "0"]
    assert attnzoo_main.main([*command, "--json", str(raw), "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert "against points" in out
    assert "fitted exponents" in out
    record = json.loads(raw.read_text())
    assert all(len(entry["seconds"]) == scaling.ROUNDS for entry in record["rows"])
    assert plot.read_bytes()[1:4] == b"PNG"


def test_a_small_limit_leaves_sizes_out(monkeypatch):
    monkeypatch.setattr(scaling, "setups", lambda *_: [[setup(16)], [setup(32)]])
    record = scaling.run(CPU, ["dense"], ["forward"], Limits(seconds=1e-9), seconds=0)
    assert [entry["tokens"] for entry in record["rows"]] == [16]
    assert [(left["x"], left["pass"]) for left in record["left_out"]] == [(32, "forward")]


def test_an_unknown_attention_is_one_line(capsys):
    assert attnzoo_main.main(["bench", "scaling", "--attentions", "dens"]) == 2
    assert "unknown attention 'dens'; did you mean 'dense'?" in capsys.readouterr().err


def test_a_plot_that_cannot_be_written_is_known_before_anything_is_measured(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(scaling, "run", None)
    for name, complaint in (("plot.txt", "expected a name ending in .png"), ("file/plot.png", "--plot ")):
        (tmp_path / "file").touch()
        assert attnzoo_main.main(["bench", "scaling", "--plot", str(tmp_path / name)]) == 2
        assert complaint in capsys.readouterr().err


def test_a_mistake_leaves_no_folder_behind(tmp_path):
    folder = tmp_path / "new"
    wanted = ["--json", str(folder / "scaling.json"), "--plot", str(folder / "scaling.svg")]
    assert attnzoo_main.main(["bench", "scaling", "--attentions", "dens", *wanted]) == 2
    assert not folder.exists()
