"""Probes: labels against plain loops, chance, splits, determinism, options."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from attnzoo.data.build import PROBES
from attnzoo.data.probes import CHANNELS, CONTENT, QUERIES, smooth_fields
from attnzoo.errors import UserError
from attnzoo.models.probe import model

NAMES = PROBES.names()
MAPS = 2


def batch_of(name: str, split: str = "train", seed: int = 0, number: int = 0, maps: int = MAPS, **options: Any) -> Any:
    return PROBES.build(name, **options).build(split).batch(seed, number, maps)


def direction(index: int, distance: float) -> tuple[int, int]:
    angle = 2 * math.pi * (index % 8) / 8
    return round(distance * math.cos(angle)), round(distance * math.sin(angle))


def peaks(channel: np.ndarray) -> list[tuple[int, int]]:
    """Pixels (x, y) with a blob: at least 0.9, and not below a neighbour."""
    found = []
    for y in range(channel.shape[0]):
        for x in range(channel.shape[1]):
            around = channel[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            if channel[y, x] > 0.9 and channel[y, x] == around.max():
                found.append((x, y))
    return found


def read(maps: np.ndarray, x: int, y: int, asked: int) -> list[int]:
    places = [direction(asked + 4 * i, 3) for i in range(2)]
    return [int(maps[:6, y + dy, x + dx].argmax()) for dx, dy in places]


def reach(maps: np.ndarray, x: int, y: int, asked: int) -> list[int]:
    dx, dy = direction(asked, 6)
    return [int(maps[:6, y + dy, x + dx].argmax())]


def count(maps: np.ndarray, x: int, y: int, asked: int) -> list[int]:
    return [sum(maps[0, y + dy, x + dx] == 1 for dx, dy in (direction(i, 4) for i in range(8)))]


def shape(maps: np.ndarray, x: int, y: int, asked: int) -> list[int]:
    angle = math.pi * asked / 8
    line = [(round(t * math.cos(angle)), round(t * math.sin(angle))) for t in range(-4, 5)]
    sums = [sum(float(maps[c, y + dy, x + dx]) for dx, dy in line) for c in range(6)]
    return [int(np.argmax(sums))]


def scale(maps: np.ndarray, x: int, y: int, asked: int) -> list[int]:
    below = 0.5 * (1 + math.erf(float(maps[6, y, x]) / math.sqrt(2)))  # of a standard normal
    half = [0, 1, 4][min(int(below * 3), 2)]
    square = maps[:6, y - half : y + half + 1, x - half : x + half + 1]
    assert square.shape[1:] == (2 * half + 1, 2 * half + 1), "the square lies on the map"
    return [int(square.mean((1, 2), dtype=np.float64).argmax())]


def find(maps: np.ndarray, x: int, y: int, asked: int) -> list[int]:
    ((bx, by),) = peaks(maps[6 + asked])
    return [int(maps[:6, by, bx].argmax())]


def relation(maps: np.ndarray, x: int, y: int, asked: int) -> list[int]:
    ((bx, by),) = peaks(maps[asked])
    assert 2 <= math.hypot(bx - x, by - y) <= 5
    degrees = math.degrees(math.atan2(by - y, bx - x)) + math.degrees(0.1)
    return [int(degrees % 360 // 90)]


def region(maps: np.ndarray, x: int, y: int, asked: int) -> list[int]:
    near = [blob for blob in peaks(maps[asked]) if math.hypot(blob[0] - x, blob[1] - y) <= 6]
    return [min(len(near), 4)]


LABELS: dict[str, Callable[[np.ndarray, int, int, int], list[int]]] = {
    f.__name__: f for f in (read, reach, count, shape, scale, find, relation, region)
}


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_those_of_plain_loops(name: str) -> None:
    batch = batch_of(name)
    size = batch.maps.shape[-1]
    for image in range(MAPS):
        for query in range(QUERIES):
            x, y = (round(float(c) * size - 0.5) for c in batch.references[image, query])
            asked = int(batch.content[image, query].argmax())
            expected = LABELS[name](batch.maps[image].numpy(), x, y, asked)
            assert batch.labels[image, query].tolist() == expected, (image, query)


@pytest.mark.parametrize("name", NAMES)
def test_batches_have_the_shapes_of_the_model(name: str) -> None:
    spec = PROBES.build(name)
    batch = batch_of(name)
    assert (CHANNELS, CONTENT, QUERIES) == (model.CHANNELS, model.CONTENT, model.QUERIES)
    assert batch.maps.shape == (MAPS, CHANNELS, 20, 20)
    assert batch.references.shape == (MAPS, QUERIES, 2)
    assert batch.content.shape == (MAPS, QUERIES, CONTENT)
    assert batch.labels.shape == (MAPS, QUERIES, spec.answers)
    assert batch.labels.min() >= 0
    assert batch.labels.max() < spec.classes
    assert (batch.content.sum(-1) == 1).all()
    for references in batch.references:  # at different pixels, so that tokens of the map can be the queries
        assert len({tuple(point) for point in references.tolist()}) == QUERIES


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_spread_over_the_classes(name: str) -> None:
    """No constant answer is right more often than in a tenth above, or twice, an even spread; every class occurs."""
    spec = PROBES.build(name)
    counts = Counter(batch_of(name, maps=64).labels.flatten().tolist())
    assert counts.keys() == set(range(spec.classes))
    assert max(counts.values()) / counts.total() < max(1 / spec.classes + 0.1, 2.1 / spec.classes)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_depends_on_seed_split_and_number_alone(name: str) -> None:
    first = batch_of(name, seed=3, number=5)
    torch.manual_seed(99)  # the default generator is not used
    again = batch_of(name, seed=3, number=5)
    for ours, theirs in zip((*first.inputs, first.labels), (*again.inputs, again.labels), strict=True):
        assert torch.equal(ours, theirs)
    for other in ({"seed": 4}, {"number": 6}, {"split": "val"}):
        assert not torch.equal(batch_of(name, **{"seed": 3, "number": 5, **other}).maps, first.maps)


@pytest.mark.parametrize("name", NAMES)
def test_training_and_validation_maps_differ(name: str) -> None:
    train = {image.numpy().tobytes() for number in range(20) for image in batch_of(name, number=number, maps=12).maps}
    val = {image.numpy().tobytes() for image in batch_of(name, "val", maps=64).maps}
    assert len(train) == 240
    assert len(val) == 64
    assert not train & val


def test_fields_are_smooth_with_variance_1() -> None:
    """Gaussian blur of σ pixels gives neighbours at distance d the correlation exp(-d² / 4σ²)."""
    fields = smooth_fields(torch.Generator().manual_seed(0), 50, 4, 20, 2.0).double()
    assert fields.square().mean() == pytest.approx(1, abs=0.05)
    for distance in (1, 3):
        correlation = (fields * fields.roll(distance, -1)).mean() / fields.square().mean()
        assert correlation == pytest.approx(math.exp(-(distance**2) / 16), abs=0.05)


HARDER: list[tuple[str, dict[str, Any], int]] = [
    ("read", {"places": 8}, 8 * 6),
    ("count", {"places": 2}, 3),
    ("scale", {"scales": 1}, 6),
    ("relation", {"directions": 8}, 8),
    ("find", {"keys": 2}, 6),
    ("region", {"radius": 2.0}, 5),
    ("shape", {"length": 1}, 6),
    ("reach", {"distance": 10}, 6),
]


@pytest.mark.parametrize(("name", "options", "num_classes"), HARDER)
def test_difficulty(name: str, options: dict[str, Any], num_classes: int) -> None:
    spec = PROBES.build(name, **options)
    assert spec.difficulty == next(iter(options))
    assert spec.num_classes == num_classes
    assert batch_of(name, **options).labels.max() < spec.classes


INVALID: list[tuple[str, dict[str, Any], str]] = [
    ("read", {"places": 3}, r"data\.dataset\.places = 3: expected 1, 2, 4 or 8"),
    ("reach", {"distance": 30}, r"data\.dataset\.distance = 30: expected from 1 to below size = 20"),
    (
        "read",
        {"distance": 15},
        "only 0 pixels can be .* with size = 20, places = 2, distance = 15; use larger",
    ),
    ("scale", {"scales": 4}, "expected 1, 2 or 3"),
    ("shape", {"length": 8}, "expected odd"),
    ("find", {"keys": 9}, "expected from 2 to 8"),
    ("relation", {"directions": 3}, "expected 2, 4 or 8"),
    ("region", {"size": 14}, "expected at least 15 pixels"),
    ("count", {"val_maps": 0}, "expected at least 1"),
    ("count", {"smoothness": 0.0}, "smoothness"),
    ("find", {"size": 8}, "from 12 to 256"),
]


@pytest.mark.parametrize(("name", "options", "message"), INVALID)
def test_invalid_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PROBES.build(name, **options)
