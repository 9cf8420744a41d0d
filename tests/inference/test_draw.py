"""Drawing primitives, looked at by the colours of the pixels they leave."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from support.records import recorded

from attnzoo.attention import names
from attnzoo.geometry import Role
from attnzoo.inference import draw
from attnzoo.inference.attention import draw_attention, legend

GREY = np.full((32, 48, 3), 128, dtype=np.uint8)


def panel(aspect: float = 32 / 48):
    figure, axes = draw.new_panels(1, 1, aspect)
    draw.draw_image(axes[0, 0], GREY)
    return figure, axes[0, 0]


def center_of(figure, axes, color: str) -> tuple[float, float]:
    """Mean x and y in [0, 1] of the picture, over its pixels of a color."""
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(float) / 255
    rows, columns = np.nonzero(np.abs(pixels - np.array(to_rgb(color))).max(-1) < 0.12)
    assert len(rows), f"nothing is drawn in {color}"
    box = axes.get_window_extent()
    height = pixels.shape[0]
    return float((columns.mean() - box.x0) / box.width), float((rows.mean() - (height - box.y1)) / box.height)


def test_sampling_points_are_where_they_should_be() -> None:
    figure, axes = panel()
    locations = np.array([[[[0.25, 0.75]], [[0.8, 0.3]]]])  # one head, two levels, one point
    draw.draw_sampling_points(axes, locations, np.ones((1, 2, 1)))
    assert center_of(figure, axes, draw.level_color(0)) == pytest.approx((0.25, 0.75), abs=0.03)
    assert center_of(figure, axes, draw.level_color(1)) == pytest.approx((0.8, 0.3), abs=0.03)


def test_levels_with_equal_points_are_all_seen() -> None:
    """As of initial offsets in a box: the last level hid the others."""
    for levels in (1, 2, 4, 5):
        figure, axes = panel()
        draw.draw_sampling_points(axes, np.full((1, levels, 1, 2), 0.5), np.ones((1, levels, 1)))
        centers = [center_of(figure, axes, draw.level_color(level)) for level in range(levels)]
        np.testing.assert_allclose(np.mean(centers, 0), (0.5, 0.5), atol=0.03)


def test_boxes_are_centred_where_they_should_be() -> None:
    figure, axes = panel()
    draw.draw_boxes(axes, np.array([[0.2, 0.3, 0.6, 0.9]]), color="#0072B2")
    assert center_of(figure, axes, "#0072B2") == pytest.approx((0.4, 0.6), abs=0.03)


def test_density_adds_levels_by_area() -> None:
    sizes = ((4, 6), (2, 3))
    uniform = np.concatenate([np.full(24, 0.5 / 24), np.full(6, 0.5 / 6)])
    np.testing.assert_allclose(draw.attention_density(uniform, sizes), 1)
    one = np.zeros(30)
    one[24 + 4] = 1.0  # row 1, column 1 of the second level
    density = draw.attention_density(one, sizes)
    assert density[2:, 2:4].tolist() == [[6, 6], [6, 6]]
    assert density.sum() == 24


def test_window_density_is_nan_outside() -> None:
    centers, weights = np.array([[0.125, 0.25], [0.375, 0.25], [0.9, 0.9]]), np.array([0.25, 0.75, 0.0])
    density = draw.window_density([centers], [weights], [(2, 4)])
    assert density[0, :2].tolist() == [2, 6]
    assert np.isnan(density).sum() == 6


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
@pytest.mark.parametrize("name", names())
def test_every_attention_is_drawn_in_every_format(name: str, suffix: str, tmp_path: Path) -> None:
    record, _ = recorded(name)
    figure, axes = draw.new_panels(1, 2, 32 / 48, "Title", legend(record))
    for query, column in ((0, 0), (55, 1)):
        draw.draw_image(axes[0, column], GREY)
        before = len(axes[0, column].get_children())
        draw_attention(axes[0, column], record, query)
        assert len(axes[0, column].get_children()) > before
    figure.savefig(tmp_path / f"a.{suffix}")
    assert (tmp_path / f"a.{suffix}").stat().st_size > 1000


def test_legend_stands_below_the_pictures() -> None:
    record, _ = recorded("ms_deform", Role.DECODER, boxes=True)
    for columns in (1, 4):
        figure, axes = draw.new_panels(1, columns, 1.0, "", legend(record))
        figure.canvas.draw()
        box = figure.legends[0].get_window_extent()
        assert box.y1 <= axes[0, 0].get_window_extent().y0
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
