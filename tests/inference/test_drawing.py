"""`attnzoo draw` and its function: what is chosen, what is drawn, and one clear line for what is not there."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from support.drawn import drawable, picture
from support.engine import uninterrupted  # noqa: F401
from support.records import recorded
from torch import nn

from attnzoo import attention
from attnzoo.__main__ import main
from attnzoo.attention import Attention
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot
from attnzoo.inference import draw
from attnzoo.inference.attention import draw_attention, group_of, token_center
from attnzoo.inference.drawing import draw_attentions, locate
from attnzoo.inference.loaded import LoadedModel
from attnzoo.inference.observe import Aim, aims, best_queries, counterpart, find_layers, initial, observe
from attnzoo.inference.page.encode import encode_record
from attnzoo.inference.page.write import render
from attnzoo.inference.records import AttentionRecord, Kind, initial_record, predicted_offsets, record_attentions
from attnzoo.rundir.folder import RunFolder


@pytest.fixture(scope="module")
def detector() -> LoadedModel:
    return drawable("detr_scenes.yaml")


@pytest.fixture(scope="module")
def classifier() -> LoadedModel:
    return drawable("dat_digits.yaml")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return picture(tmp_path_factory.mktemp("pictures") / "noise.png")


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_best_queries_of_a_detector(detector: LoadedModel, image: Path, tmp_path: Path, suffix: str) -> None:
    figure = draw_attentions(detector, image, tmp_path / f"a.{suffix}", best=3, head=1, zoom=True)
    assert figure is not None
    assert (tmp_path / f"a.{suffix}").stat().st_size > 4000
    assert len(figure.axes) == 3
    observed = observe(detector.model, detector.preprocess(image)[None], detector.class_names)
    for axes, query in zip(figure.axes, best_queries(observed), strict=False):
        assert axes.get_title(loc="left").startswith(f"{observed.label(query)} · query {query}")


def test_legend_stands_below_the_pictures_inside_the_figure(
    detector: LoadedModel, classifier: LoadedModel, image: Path, tmp_path: Path
) -> None:
    for model, best in ((detector, 1), (detector, 6), (classifier, None)):
        figure = draw_attentions(model, image, tmp_path / "a.png", best=best)
        assert figure is not None
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.y1 <= min(axes.get_window_extent().y0 for axes in figure.axes)
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
        for text in figure.texts:
            assert text.get_window_extent().x1 <= figure.bbox.width


def test_layers_of_a_classifier_side_by_side(classifier: LoadedModel, image: Path, tmp_path: Path) -> None:
    figure = draw_attentions(classifier, image, tmp_path / "a.png", xy=(10, 50), bias=True)
    assert figure is not None
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[1].startswith("stage2.1 · deformed grid")
    assert len(titles) == 3
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"position bias: negative … positive", "group 0", "group 1"} <= {*labels}


def test_compare_draws_pairs(detector: LoadedModel, image: Path, tmp_path: Path) -> None:
    other = drawable("detr_scenes.yaml", seed=1)
    for compare, name in (("initial", "initial"), (other, "before")):
        figure = draw_attentions(
            detector, image, tmp_path / "a.png", best=2, compare=compare, names=("after", "before")
        )
        assert figure is not None
        titles = [axes.get_title(loc="left") for axes in figure.axes]
        assert len(titles) == 4
        assert titles[1] == titles[3] == name


@pytest.mark.parametrize("boxes", [False, True])
def test_initial_points_are_at_the_initial_offsets(boxes: bool) -> None:
    record, module = recorded("ms_deform", Role.DECODER, boxes)
    changed = initial_record(record)
    assert changed is not None
    offsets = predicted_offsets(changed)
    assert offsets is not None
    np.testing.assert_allclose(offsets, np.broadcast_to(module.initial_offsets(), offsets.shape), atol=1e-4)
    np.testing.assert_allclose(changed.weights.sum((2, 3)), 1, rtol=1e-5)


def test_two_stage_queries_are_compared_by_their_boxes(detector: LoadedModel, image: Path) -> None:
    observed = observe(detector.model, detector.preprocess(image)[None])
    assert not observed.same_queries
    record = observed.records["decoder.1"]
    assert all(counterpart(observed, initial(observed), record, query).query == query for query in range(20))


def test_default_layers(detector: LoadedModel, classifier: LoadedModel) -> None:
    assert find_layers(detector.model, None) == ["decoder.1"]
    assert find_layers(detector.model, "decoder") == ["decoder.0", "decoder.1"]
    assert find_layers(classifier.model, None) == ["stage1.1", "stage2.1", "stage3.1"]


def test_best_queries_are_of_different_objects_first(detector: LoadedModel, image: Path) -> None:
    observed = observe(detector.model, detector.preprocess(image)[None])
    first, second, third = observed.predictions.queries[:3]
    boxes = np.zeros((1, 20, 4))
    boxes[0, :, 2:] = 0.5
    boxes[0, third] = (0.6, 0.6, 0.9, 0.9)
    order = best_queries(replace(observed, boxes=boxes))
    assert order[:3] == [first, third, second]
    assert sorted(order) == list(range(20))


def test_a_point_finds_its_query_and_its_token(detector: LoadedModel, image: Path) -> None:
    observed = observe(detector.model, detector.preprocess(image)[None])
    best = aims(observed, None, None, 1)[0]
    assert best.query == observed.predictions.queries[0]
    assert best.point is not None
    assert Aim(point=best.point).query_of(observed, observed.records["decoder.1"]) == best.query
    token = Aim(point=(0.3, 0.8)).query_of(observed, observed.records["encoder.0"])
    np.testing.assert_allclose(token_center(observed.records["encoder.0"], token), (0.3, 0.8), atol=0.5 / 8)
    assert observed.query_at((-9.0, -9.0)) in observed.predictions.queries


def test_heads_of_a_grid_have_the_keys_of_their_group() -> None:
    record, _ = recorded("dat", groups=2)
    assert [group_of(record, head) for head in range(4)] == [0, 0, 1, 1]


def test_pixels_are_followed_through_resize_and_crop(tmp_path: Path) -> None:
    wide = picture(tmp_path / "wide.png", width=300, height=200)
    squashed = drawable("dat_digits.yaml", "data.augment={name: timm, size: 64, crop_pct: 1.0, crop_mode: squash}")
    assert locate(squashed, wide, (75, 150)) == pytest.approx((0.25, 0.75), abs=0.02)
    central = drawable("dat_digits.yaml", "data.augment={name: timm, size: 64, crop_pct: 1.0}")
    assert locate(central, wide, (100, 150)) == pytest.approx((0.25, 0.75), abs=0.02)
    with pytest.raises(UserError, match="xy = 10,150: outside of the central part of the image that the model sees"):
        locate(central, wide, (10, 150))
    with pytest.raises(UserError, match="xy = 300,10: outside of the image of 300 × 200 pixels"):
        locate(central, wide, (300, 10))


ERRORS = {
    "unknown layer": ({"layer": "decodr.1"}, r"layer: unknown layer 'decodr.1'; did you mean 'decoder.1'\?"),
    "head": ({"head": 4}, r"head = 4: decoder.1 has heads 0 … 3"),
    "query": ({"query": 20}, r"query = 20: decoder.1 has object queries 0 … 19"),
    "token": ({"query": -1, "layer": "encoder"}, r"query = -1: encoder.0 has queries 0 … 79"),
    "two choices": ({"query": 1, "best": 2}, r"query and best: give one of them"),
    "none": ({"best": 0}, r"best = 0: expected at least 1"),
    "compare": ({"compare": "initail"}, r"compare = 'initail': expected 'initial' or a model"),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("suffix", ["png", "html"])
def test_errors_of_detectors(detector: LoadedModel, image: Path, tmp_path: Path, name: str, suffix: str) -> None:
    options, message = ERRORS[name]
    with pytest.raises(UserError, match=message):
        draw_attentions(detector, image, tmp_path / f"a.{suffix}", **options)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_classifiers(classifier: LoadedModel, image: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="best: a classifier has no object queries"):
        draw_attentions(classifier, image, tmp_path / "a.png", best=2)
    with pytest.raises(UserError, match=r"compare = initial: stage1.1 has no initial offsets"):
        draw_attentions(classifier, image, tmp_path / "a.png", compare="initial")


def test_errors_of_the_output(detector: LoadedModel, image: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.gif: expected a name that ends in \.png, \.svg, \.pdf or \.html"):
        draw_attentions(detector, image, tmp_path / "a.gif")
    with pytest.raises(UserError, match="is a folder; name a file"):
        draw_attentions(detector, image, tmp_path)
    assert list(tmp_path.iterdir()) == []
    draw_attentions(detector, image, tmp_path / "new" / "a.PNG", best=1)  # its folder is made, as `export` does
    assert (tmp_path / "new" / "a.PNG").is_file()


def test_command_refuses_a_page_of_another_suffix(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["draw", "run", str(image), "-o", "a.png", "--html"]) == 2
    assert "-o a.png: expected a name that ends in .html with --html" in capsys.readouterr().err


def test_command_draws_a_run(
    uninterrupted: RunFolder,  # noqa: F811
    image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, output = str(uninterrupted.path), tmp_path / "a.svg"
    assert main(["draw", run, "--layer", "encoder", str(image), "-o", str(output), "--xy", "10,20"]) == 0
    assert capsys.readouterr().out == f"1 image: {output}\n"
    assert output.read_text().count("<image") == 1
    assert main(["draw", run, str(image), "-o", str(tmp_path / "a.html"), "--compare", run]) == 0
    page = (tmp_path / "a.html").read_text()
    assert 'id="data">{"pictures":["noise.png"]' in page
    assert page.count('"sameQueries"') == 2
    assert main(["draw", run, str(image), "-o", str(output), "--head", "99"]) == 2
    assert "--head 99: decoder." in capsys.readouterr().err


class Ring(Attention):
    """A plugin that samples the four neighbours of each query."""

    def forward(self, queries: Queries, memory: Pyramid) -> torch.Tensor:
        if self.recording:
            shifts = torch.tensor([[0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1]])
            locations = memory.layout.centers[:, :, None, None, None] + shifts
            heads = locations.expand(-1, -1, self.slot.heads, -1, -1, -1)
            self.record(weights=torch.full(heads.shape[:-1], 0.25), locations=heads)
        return queries.tokens

    def flops(self, queries: object, memory: Layout) -> int:
        return memory.num_tokens * self.slot.dim


def test_a_plugin_is_drawn_from_locations_and_weights() -> None:
    memory = Pyramid(torch.randn(1, 12, 8), Layout.unpadded([(3, 4)], 1))
    found: list[AttentionRecord] = []
    module = nn.ModuleDict({"ring": Ring(Slot(8, 2))})
    with record_attentions(module, found.append):
        module["ring"](memory.as_queries(), memory)
    (record,) = found
    assert record.kind == Kind.POINTS
    assert (record.num_queries, record.num_heads) == (12, 2)
    _, axes = draw.new_panels(1, 1)
    draw_attention(axes[0, 0], record, 5, head=1)
    assert [len(drawn.get_offsets()) for drawn in axes[0, 0].collections if isinstance(drawn, PathCollection)] == [4]


def test_tokens_of_one_level_may_attend_to_another() -> None:
    record, _ = recorded("deform", level=1)
    assert (record.map_sizes, record.query_sizes) == (((3, 4),), ((6, 8), (3, 4)))
    assert record.references is not None
    for query in (0, 47, 48, 59):
        np.testing.assert_allclose(token_center(record, query), record.references[query], atol=1e-6)
    assert record.nearest_query((0.99, 0.99)) == 47


def test_dense_attention_with_a_position_bias_is_a_map() -> None:
    record, _ = recorded("dense", bias="relative")
    assert record.kind == Kind.MAP
    assert record.bias is not None


def test_every_attention_is_in_the_page(detector: LoadedModel) -> None:
    observed = observe(detector.model, torch.randn(1, 3, 64, 64))
    for name in attention.names():
        record, _ = recorded(name)
        whole = encode_record(record, observed, 10**9)
        assert whole["kept"] is None
        assert whole["kind"] == record.kind
        some = encode_record(record, observed, 1000)
        assert len(some["kept"]) < record.num_queries
        assert len(some["weights"]) < len(whole["weights"])


def test_names_in_the_page_are_text(detector: LoadedModel) -> None:
    hostile = '</script><script>alert("1")</script>'
    observed = observe(detector.model, torch.randn(1, 3, 64, 64), [hostile] * 10)
    page = render({hostile: [observed]}, [hostile], hostile)
    assert page.count("<script") == 2
    assert "alert(" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_model_without_the_layers_is_not_compared(
    detector: LoadedModel, classifier: LoadedModel, image: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"^compare = b: has no layer 'decoder.1'; both models need the layers"):
        draw_attentions(detector, image, tmp_path / "a.png", compare=classifier, names=("a", "b"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.decoder.attention.name=dense", "decoder.1 is dense, 20 queries, 4 heads, "),
        ("model.queries=10", "decoder.1 is ms_deform, 10 queries, 4 heads, "),
        ("model.decoder.attention.points=2", "decoder.1 is ms_deform, 20 queries, 4 heads, "),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "html"])
def test_another_attention_is_not_compared(
    detector: LoadedModel, image: Path, tmp_path: Path, change: str, message: str, suffix: str
) -> None:
    """Queries that have nothing in common were drawn side by side."""
    other = drawable("detr_scenes.yaml", change)
    with pytest.raises(UserError, match=f"^compare = b: {message}.*, but ms_deform, 20 queries, .* in a;"):
        draw_attentions(detector, image, tmp_path / f"a.{suffix}", compare=other, names=("a", "b"))
    assert list(tmp_path.iterdir()) == []


def test_a_page_compares_all_layers(detector: LoadedModel, image: Path, tmp_path: Path) -> None:
    other = drawable("detr_scenes.yaml", "model.encoder.attention.name=dense")
    draw_attentions(detector, image, tmp_path / "a.png", compare=other)
    with pytest.raises(UserError, match=r"compare = other: encoder\.0 is dense"):
        draw_attentions(detector, image, tmp_path / "a.html", compare=other)
