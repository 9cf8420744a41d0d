"""Shares of a decoder's attention inside the predicted box and per level, against hand-made records."""

import dataclasses

import numpy as np
import pytest
import torch

from attnzoo.geometry import Role
from attnzoo.inference.examples import Example, Predictions
from attnzoo.inference.records import AttentionRecord, Kind
from attnzoo.inference.shares import AttentionShares, best_queries, inside_share, key_levels

MAPS = ((2, 2), (1, 1))
BOX = np.array([0.0, 0.0, 0.5, 0.5])


def points() -> AttentionRecord:
    """Two queries, heads and levels, one point. Query 1: 0.7 of its first head inside BOX, all of its second."""
    weights = np.array([[[[0.5], [0.5]], [[0.5], [0.5]]], [[[0.7], [0.3]], [[0.2], [0.8]]]])
    locations = np.full((2, 2, 2, 1, 2), 0.25)
    locations[1, 0, 1] = 0.75
    return AttentionRecord("decoder.0", Role.DECODER, weights, locations, None, MAPS)


def example(*boxes: list[float], side: int = 100) -> Example:
    picture = np.zeros((side, side, 3), np.uint8)
    return Example(torch.zeros(1, 3, side, side), picture, np.array(boxes), (0,) * len(boxes))


def predictions() -> Predictions:
    """By descending score: query 0 far away, query 1 at BOX."""
    boxes = np.array([[0.6, 0.6, 0.9, 0.9], BOX])
    return Predictions(np.array([0, 1]), np.zeros(2, int), np.array([0.9, 0.1]), boxes)


def test_share_inside_the_box_of_sampling_points() -> None:
    record = points()
    assert record.kind == Kind.POINTS
    assert inside_share(record, 1, BOX) == pytest.approx((0.7 + 1) / 2)
    assert inside_share(record, 0, BOX) == pytest.approx(1)


def test_share_inside_the_box_of_dense_attention() -> None:
    """Token centres: four of the first map, of which one lies in BOX, and the middle of the image."""
    weights = np.array([[[0.4, 0.1, 0.1, 0.1, 0.3]]])
    record = AttentionRecord("decoder.0", Role.DECODER, weights, None, None, MAPS)
    assert record.kind == Kind.MAP
    assert inside_share(record, 0, BOX) == pytest.approx(0.4 + 0.3)  # the middle is the corner of BOX
    assert inside_share(record, 0, BOX - 0.01) == pytest.approx(0.4)
    np.testing.assert_array_equal(key_levels(record), [0, 0, 0, 0, 1])


def test_share_inside_the_box_of_a_grid_with_groups() -> None:
    """Heads 0 and 1 use the keys of group 0, heads 2 and 3 those of group 1."""
    weights = np.tile(np.array([0.9, 0.1]), (4, 1, 1))
    locations = np.array([[[0.1, 0.1], [0.9, 0.9]], [[0.9, 0.9], [0.1, 0.1]]])
    record = AttentionRecord("decoder.0", Role.DECODER, weights, locations, None, ((3, 3),))
    assert record.kind == Kind.GRID
    assert inside_share(record, 0, BOX) == pytest.approx((0.9 + 0.9 + 0.1 + 0.1) / 4)
    assert key_levels(record) is None


def test_share_inside_the_box_of_a_window() -> None:
    locations = np.array([[[0.1, 0.1], [0.9, 0.9], [0.4, 0.2]]])
    weights = np.array([[[0.5, 0.3, 0.2]]])
    record = AttentionRecord("decoder.0", Role.DECODER, weights, locations, None, ((4, 4),))
    assert record.kind == Kind.WINDOW
    assert inside_share(record, 0, BOX) == pytest.approx(0.7)


def test_the_query_is_that_of_the_best_box_and_the_size_that_of_the_object() -> None:
    thresholds = (30.0**2, 60.0**2)  # pixels of a picture of 100
    objects = example([0.0, 0.0, 0.2, 0.2], [0.05, 0.0, 0.5, 0.5], [0.2, 0.2, 0.95, 0.95])
    matches = list(best_queries(objects, predictions(), thresholds))
    assert [(match.query, match.size) for match in matches] == [(1, "small"), (1, "medium"), (0, "large")]
    enlarged = dataclasses.replace(objects, original_size=(10, 10))
    assert {match.size for match in best_queries(enlarged, predictions(), thresholds)} == {"small"}


def test_means_over_objects_by_size() -> None:
    shares = AttentionShares((30.0**2, 60.0**2))
    encoder = dataclasses.replace(points(), name="encoder.0", role=Role.ENCODER)
    records = {"decoder.0": points(), "encoder.0": encoder}
    shares.add(example([0.0, 0.0, 0.2, 0.2], [0.6, 0.6, 0.9, 0.9]), predictions(), records)
    assert shares.means() == pytest.approx(
        {
            "inside_box/decoder.0": (0.85 + 0.0) / 2,
            "level_share/decoder.0/small/level0": (0.7 + 0.2) / 2,
            "level_share/decoder.0/small/level1": (0.3 + 0.8) / 2,
            "level_share/decoder.0/medium/level0": 0.5,
            "level_share/decoder.0/medium/level1": 0.5,
        }
    )
    assert AttentionShares((1.0, 2.0)).means() == {}
