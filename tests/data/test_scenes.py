"""`digit_scenes`: reproducible, disjoint splits, valid annotations, safe to generate by several processes at once."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from attnzoo.data.build import build_dataset, dataset_info
from attnzoo.data.config import ClassificationDataConfig, DataConfig
from attnzoo.data.rendering import digit_indices, overlap, split_region
from attnzoo.data.scenes import DigitScenes
from attnzoo.errors import UserError

SMALL = {"name": "digit_scenes", "train_images": 60, "val_images": 20, "clutter": [1, 2]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(**options):
    return DataConfig(dataset=SMALL | options)


def contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_images_are_deterministic_and_depend_on_the_seed(tmp_path):
    made = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        DigitScenes(train_images=12, val_images=5, seed=seed).generate(tmp_path / name)
        made.append(contents(tmp_path / name))
    assert len(made[0]) == 12 + 5 + 2
    assert made[0] == made[1]
    assert not set(made[0].values()) & set(made[2].values())


def test_train_and_val_share_neither_digits_nor_parts_of_photographs():
    assert set(digit_indices("train")).isdisjoint(digit_indices("val"))
    assert sorted(digit_indices("train") + digit_indices("val")) == list(range(1797))
    for split in ("train", "val"):
        coco = build_dataset(config(), split).coco
        assert {a["source"] for a in coco.anns.values()} <= set(digit_indices(split))
        for image in coco.imgs.values():
            left, top, right, bottom = split_region(image["photo"], split)
            x0, y0, x1, y1 = image["region"]
            assert left <= x0 < x1 <= right
            assert top <= y0 < y1 <= bottom
    assert split_region("china.jpg", "train")[2] <= split_region("china.jpg", "val")[0]


def test_annotations_are_within_their_limits():
    from sklearn.datasets import load_digits

    dataset = build_dataset(config(noise=0.0), "train")
    classes = load_digits().target
    for i, image_id in enumerate(dataset.image_ids):
        annotations = dataset.coco.imgToAnns.get(image_id, [])
        assert 1 <= len(annotations) <= 4
        for annotation in annotations:
            x, y, w, h = annotation["bbox"]
            assert x >= 0
            assert y >= 0
            assert max(x + w, y + h) <= 64
            assert 9.5 <= max(w, h) <= 28.5
            assert annotation["category_id"] == classes[annotation["source"]]
            assert all(
                overlap(annotation["bbox"], other["bbox"]) <= 0.1 for other in annotations if other is not annotation
            )
        assert dataset[i][0].shape == (3, 64, 64)
    assert dataset.num_classes == dataset_info(config()).num_classes == 10


def test_boxes_are_tight():
    """With and without its digits, an image differs inside the boxes, up to each of their sides."""
    options = {
        "train_images": 20,
        "val_images": 1,
        "noise": 0.0,
        "rotation": 0.0,
        "max_overlap": 0.0,
        "clutter": [0, 0],
    }
    with_digits = build_dataset(config(objects=[1, 1], **options), "train")
    without = DigitScenes(**options, objects=(0, 0)).folder() / "train"
    for i in range(20):
        empty = torch.from_numpy(np.array(Image.open(without / f"{i:06d}.png"))).permute(2, 0, 1)
        changed = (with_digits.load_raw(i)[0].int() - empty.int()).abs().amax(0) > 0
        rows, columns = np.nonzero(changed.numpy())
        x, y, w, h = with_digits.coco.imgToAnns[with_digits.image_ids[i]][0]["bbox"]
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert edges == pytest.approx([x, y, x + w, y + h], abs=1)


def test_area_thresholds_scale_with_the_image_and_split_the_objects():
    dataset = build_dataset(config(), "train")
    small, medium = dataset.area_thresholds
    areas = [a["area"] for a in dataset.coco.anns.values()]
    assert min(areas) < small < medium < max(areas)
    larger = build_dataset(config(image_size=128, train_images=1, val_images=1), "val").area_thresholds
    assert larger == pytest.approx((4 * small, 4 * medium))


def test_images_do_not_depend_on_their_number():
    few, many = (build_dataset(config(train_images=n), "train") for n in (5, 9))
    assert all((few.load_raw(i)[0] == many.load_raw(i)[0]).all() for i in range(5))


def test_equal_options_share_a_folder(cache):
    build_dataset(config(rotation=20), "val")
    build_dataset(config(rotation=20.0, sizes=(10, 28)), "train")
    assert len([path for path in (cache / "digit_scenes").iterdir() if path.is_dir()]) == 1
    build_dataset(config(rotation=10.0), "val")
    assert len([path for path in (cache / "digit_scenes").iterdir() if path.is_dir()]) == 2


@pytest.mark.slow
def test_several_processes_can_generate_at_once(cache):
    leftover = cache / "digit_scenes"
    program = (
        "from attnzoo.data.config import DataConfig; from attnzoo.data.build import build_dataset\n"
        f"d = build_dataset(DataConfig(dataset={SMALL | {'train_images': 300}!r}), 'train')\n"
        "print(len(d), sum(int(d.load_raw(i)[0].sum()) for i in range(300)))"
    )
    runs = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=os.environ) for _ in range(2)]
    answers = {run.communicate()[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert len(answers) == 1
    assert [path.suffix for path in sorted(leftover.iterdir())] == ["", ".lock"]


def test_leftovers_of_a_killed_process_are_replaced(cache):
    build_dataset(config(), "val")
    (made,) = (path for path in (cache / "digit_scenes").iterdir() if path.is_dir())
    before = contents(made)
    partial = made.with_suffix(".partial")
    made.rename(partial)
    (partial / "annotations" / "val.json").write_text(json.dumps({"images": []})[:5])
    build_dataset(config(), "val")
    assert contents(made) == before
    assert not partial.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": [10, 80]}, r"data\.dataset\.sizes = \[10, 80\]: expected at most image_size = 64"),
        (
            {"objects": [4, 2]},
            r"data\.dataset\.objects = \[4, 2\]: expected two ascending numbers of at least 0",
        ),
        ({"image_size": 8}, r"data\.dataset\.image_size = 8"),
        ({"object": [1, 2]}, "did you mean 'objects'"),
        ({"seed": "runs"}, "expected int | .run."),
        ({"val_seed": -1}, r"data\.dataset\.val_seed = -1"),
        ({"sizes": [1, 2, 3]}, "sizes"),
        ({"elongation": [0.5, 1]}, r"elongation = \[0\.5, 1\]: expected two ascending numbers of at least 1"),
        ({"elongation": [1, 11]}, r"elongation = \[1, 11\]: expected at most 10"),
        ({"tint": 256}, r"tint = 256: expected from 0 to 255"),
        ({"classes": "arrangements"}, r"classes = 'arrangements': expected 'digit' \| 'arrangement'"),
        ({"classes": "arrangement"}, r"part_size = 10\.0: expected from 4 to 4\.167, half the shorter side"),
        ({"size_thresholds": [20, 10]}, r"size_thresholds = \[20, 10\]: expected two ascending numbers above 0"),
    ],
)
def test_invalid_options_are_rejected(options, message):
    with pytest.raises(UserError, match=message):
        dataset_info(config(**options))


def test_error_names_the_unwritable_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ATTNZOO_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="ATTNZOO_CACHE"):
        build_dataset(config(), "val")


def test_training_images_can_follow_the_seed_of_the_run():
    """`seed: run`: other training images for each seed, the same validation images, those of seed 0."""
    following, fixed = config(seed="run"), config(seed=0)
    train = [build_dataset(following, "train", run_seed=seed).load_raw(0)[0] for seed in (0, 3)]
    val = [build_dataset(following, "val", run_seed=seed) for seed in (0, 3)]
    assert (train[0] == build_dataset(fixed, "train").load_raw(0)[0]).all()
    assert (train[1] == build_dataset(config(seed=3), "train").load_raw(0)[0]).all()
    assert not (train[0] == train[1]).all()
    for dataset in val:
        assert (dataset.load_raw(4)[0] == build_dataset(fixed, "val").load_raw(4)[0]).all()
    other = build_dataset(config(seed="run", val_seed=5), "val", run_seed=3)
    assert (other.load_raw(4)[0] == build_dataset(config(seed=5), "val").load_raw(4)[0]).all()
    assert dataset_info(following) == dataset_info(fixed)


@pytest.mark.parametrize("task", ["detection", "classification"])
def test_decoded_images_equal_their_files(task, cache):
    """On first use, mapped, after damage to their file, and where it cannot be read."""
    made = DataConfig(dataset=SMALL)
    if task == "classification":
        made = ClassificationDataConfig(dataset=SMALL | {"name": "digits", "clutter": [0, 0]})

    def samples(decoded=True):
        dataset = build_dataset(made, "val")
        if not decoded:
            dataset.decoded = None
        assert decoded == (dataset.decoded is not None)
        return dataset.__getitems__(list(range(len(dataset))))

    first, files = samples(), samples(decoded=False)
    (path,) = cache.glob("*/*/val.npy")
    written = path.stat().st_ino
    mapped = samples()
    assert path.stat().st_ino == written
    path.write_bytes(path.read_bytes()[:1000])
    after_damage = samples()
    assert path.stat().st_size > 1000
    for found in (first, mapped, after_damage):
        torch.testing.assert_close(found, files, rtol=0, atol=0)
    path.unlink()
    path.mkdir()
    build_dataset(made, "val")
    assert build_dataset(made, "val").decoded is None


def test_targets_of_all_images_equal_those_of_single_images():
    dataset = build_dataset(config(objects=[0, 3]), "train")
    together = [target for _, target in dataset.__getitems__(list(range(len(dataset))))]
    dataset._is_small = False
    alone = [dataset._load_untransformed(index)[1] for index in range(len(dataset))]
    torch.testing.assert_close(together, alone, rtol=0, atol=0)
    assert {len(target["labels"]) for target in together} >= {0, 3}
