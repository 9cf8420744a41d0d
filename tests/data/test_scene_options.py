"""Options of `digit_scenes` and `digits`, and docs/digit-scenes.md, which describes them."""

import dataclasses
import hashlib
import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from attnzoo.config.load import load
from attnzoo.data.build import build_dataset, dataset_info
from attnzoo.data.config import ClassificationDataConfig, DataConfig
from attnzoo.data.digits import Digits
from attnzoo.data.rendering import ARRANGEMENTS, CORNERS
from attnzoo.data.scenes import DigitScenes
from attnzoo.models.backbone import Backbone

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNZOO_CACHE", str(tmp_path / "cache"))


HARDER = {"image_size": 128, "sizes": (8.0, 100.0), "objects": (6, 9), "clutter": (2, 4), "max_overlap": 0.5, "seed": 3}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (DigitScenes(), ["06c26bc613354d8b", "20713fe226cad4ad"]),
        (DigitScenes(**HARDER), ["4712dd46bf93c871", "0b47559f5a3e9cc6"]),
        (Digits(), ["ae93fc8a359f7eb7", "c4e8cb4b0614c889"]),
    ],
    ids=["digit_scenes", "other options", "digits"],
)
def test_images_stay_the_same_from_version_to_version(spec, expected):
    """If other images are wanted, increment `version`: results, caches and pairs of runs depend on it."""
    found = []
    for split in ("train", "val"):
        digest = hashlib.sha256()
        for scene in itertools.islice(spec.scenes(split), 4):
            digest.update(scene.pixels.tobytes())
            for shown in scene.objects:
                digest.update(repr((shown.label, shown.box)).encode())
        found.append(digest.hexdigest()[:16])
    assert found == expected


def tool():
    spec = importlib.util.spec_from_file_location("digit_scenes_tool", ROOT / "tools" / "digit_scenes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_names_the_options_of_its_picture():
    page = (ROOT / "docs" / "digit-scenes.md").read_text()
    for options in tool().SCENES.values():
        DigitScenes(**options)
        for key, value in options.items():
            assert f"`{key}: {list(value) if isinstance(value, tuple) else value}`" in page


def drawn(count, **options):
    """Objects of validation scenes and the pixels (h, w) of each one's box that differ from the background."""
    options |= {"noise": 0.0}
    full, empty = (DigitScenes(**options, objects=objects).scenes("val") for objects in ((1, 1), (0, 0)))
    for scene, background in itertools.islice(zip(full, empty, strict=True), count):
        (shown,) = scene.objects
        x, y, w, h = shown.box
        changed = (scene.pixels != background.pixels).any(-1)
        assert changed.sum() == changed[y : y + h, x : x + w].sum()
        yield shown, changed[y : y + h, x : x + w]


ARRANGEMENT = {"classes": "arrangement", "rotation": 0.0}


def test_the_class_of_an_arrangement_is_where_its_zeros_are():
    from sklearn.datasets import load_digits

    digits = load_digits()
    options = ARRANGEMENT | {"sizes": (40.0, 60.0), "part_size": 16.0, "aspect": (1.0, 1.0)}
    labels, widths = [], {0: [], 1: []}
    for shown, changed in drawn(60, **options):
        zeros = list(ARRANGEMENTS.values())[shown.label]
        labels.append(shown.label)
        for corner, source in zip(CORNERS, shown.sources, strict=True):
            assert digits.target[source] == (0 if corner in zeros else 1)
            rows = slice(0, 16) if "top" in corner else slice(-16, None)
            columns = slice(0, 16) if "left" in corner else slice(-16, None)
            part = changed[rows, columns]
            inked = np.nonzero(digits.images[source].max(0) > 4)[0]
            widths[digits.target[source]].append((part.any(0).sum(), inked[-1] - inked[0] + 1))
    assert set(labels) == set(range(6))
    drawn_widths, source_widths = np.array(widths[0] + widths[1]).T
    assert np.corrcoef(drawn_widths, source_widths)[0, 1] > 0.5  # each part is drawn in its own corner


def test_no_part_of_an_object_tells_its_class():
    for corner in CORNERS:
        assert sum(corner in zeros for zeros in ARRANGEMENTS.values()) == 3
    assert len(set(ARRANGEMENTS.values())) == 6


def sees(stride):
    """Side of the square of pixels on which a token of the small detector's backbone depends."""
    config = load(ROOT / "experiments" / "ablate_points.yaml").model.backbone
    backbone = Backbone(dataclasses.replace(config, strides=[stride])).double().eval()
    for module in backbone.modules():
        if hasattr(module, "running_mean"):
            torch.nn.init.ones_(module.weight)  # at first the blocks do nothing
    image = torch.rand(1, 3, 256, 256, dtype=torch.float64, requires_grad=True)
    (features,) = backbone(image)
    middle = features.shape[-1] // 2
    features[0, :, middle, middle].sum().backward()
    rows = image.grad.abs().amax((0, 1, 3)).nonzero()
    return int(rows.max() - rows.min()) + 1


@pytest.mark.parametrize(
    ("strides", "seen", "image_size", "sizes", "part_size", "least"),
    [([4], 27, 96, (64, 84), 12, 29), ([8], 51, 160, (112, 144), 20, 53), ([8, 16], 99, 256, (180, 240), 24, 102)],
)
def test_parts_lie_further_apart_than_the_backbone_sees(strides, seen, image_size, sizes, part_size, least):
    """As docs/digit-scenes.md says."""
    assert sees(strides[-1]) == seen
    smallest = []
    for _, changed in drawn(12, **ARRANGEMENT, image_size=image_size, sizes=sizes, part_size=part_size):
        inked = [np.nonzero(changed.any(axis))[0] for axis in (0, 1)]
        smallest.append(min(int(np.diff(places).max()) - 1 for places in inked))
    assert seen < least <= min(smallest)
    row = f"| `{strides}` | {image_size} | `{list(sizes)}` | {part_size} | {least} |"
    assert row in (ROOT / "docs" / "digit-scenes.md").read_text()


def test_elongation_stretches_before_rotation():
    same = {"sizes": (40.0, 40.0), "aspect": (1.0, 1.0)}

    def shapes(rotation, **options):
        return np.array([shown.box[2:] for shown, _ in drawn(12, **same, rotation=rotation, **options)])

    plain, upright = shapes(0.0), shapes(0.0, elongation=(3.0, 3.0))
    ratio = (upright[:, 1] / upright[:, 0]) / (plain[:, 1] / plain[:, 0])
    assert ratio == pytest.approx([3.0] * 12, rel=0.2)
    assert (upright[:, 1] == 40).all()
    turned = shapes(90.0, elongation=(3.0, 3.0))
    assert (turned[:, 0] > turned[:, 1]).any()
    assert (turned[:, 0] < turned[:, 1]).any()


def test_tint_leaves_the_luminance():
    def colours(tint):
        options = {"tint": tint, "noise": 0.0, "objects": (1, 1), "contrast": (60.0, 60.0)}
        scenes = itertools.islice(DigitScenes(**options).scenes("val"), 8)
        centres = []
        for scene in scenes:
            x, y, w, h = scene.objects[0].box
            box = scene.pixels[y : y + h, x : x + w].reshape(-1, 3).astype(float)
            centres.append(np.abs(box - box.mean(1, keepdims=True)).max())
        return np.array(centres)

    assert (colours(0.0) <= colours(60.0)).all()
    assert colours(0.0).mean() < colours(60.0).mean() - 10


def test_size_thresholds_are_sides_of_squares():
    made = DataConfig(dataset={"name": "digit_scenes", "size_thresholds": [6, 25], "train_images": 2, "val_images": 2})
    assert build_dataset(made, "val").area_thresholds == (36, 625)


@pytest.mark.parametrize("task", ["detection", "classification"])
def test_arrangements_have_six_classes(task):
    options = {"classes": "arrangement", "sizes": [36, 46], "train_images": 30, "val_images": 12}
    if task == "detection":
        made = DataConfig(dataset={"name": "digit_scenes", "objects": [1, 1]} | options)
        dataset = build_dataset(made, "val")
        assert [category["name"] for category in dataset.coco.loadCats(range(6))] == list(ARRANGEMENTS)
    else:
        made = ClassificationDataConfig(dataset={"name": "digits"} | options)
        dataset = build_dataset(made, "val")
        assert {dataset[index][1] for index in range(12)} <= set(range(6))
    assert dataset.num_classes == dataset_info(made).num_classes == 6


def test_more_validation_images_begin_with_the_same():
    few, many = (list(DigitScenes(val_images=n).scenes("val")) for n in (4, 9))
    assert all((few[i].pixels == many[i].pixels).all() for i in range(4))
