"""Annotation files in COCO format: what is checked, categories, sizes, fingerprints, encodings, file names."""

import json
from itertools import product
from pathlib import Path

import pytest
from support.data import coco_config, edit

from attnzoo.data.build import build_dataset, dataset_fingerprint, dataset_info
from attnzoo.errors import UserError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), "it has no list of categories"),
        (lambda c: c["images"][1].pop("width"), r"images\[1\] has no 'width'"),
        (lambda c: c["annotations"][2].update(bbox=[1, 2, 3]), r"annotations\[2\].bbox = \[1, 2, 3\]: expected four"),
        (
            lambda c: c["annotations"][0].update(category_id=5),
            r"annotations\[0\].category_id = 5 does not exist",
        ),
        (lambda c: c["images"].append(c["images"][0]), "duplicate id in images"),
        (lambda c: c.update(images=[], annotations=[]), "no usable objects"),
        (lambda c: c.update(images=[1]), r"images\[0\] = 1: expected a mapping"),
        (lambda c: c.update(annotations=[None]), r"annotations\[0\] = None: expected a mapping"),
        (lambda c: c.update(annotations=["bbox"]), r"annotations\[0\] = 'bbox': expected a mapping"),
        (lambda c: c.update(categories=[[]]), r"categories\[0\] = \[\]: expected a mapping"),
        (lambda c: c.update(info=[]), r"all.json: info = \[\]: expected a mapping"),
        (
            lambda c: c.update(info={"area_thresholds": [9, 4]}),
            r"info.area_thresholds = \[9, 4\]: expected two ascending",
        ),
        (lambda c: c.update(info={"area_thresholds": 4}), "info.area_thresholds = 4: expected two ascending"),
        (lambda c: c.update(info={"area_thresholds": ["a", 4]}), "expected two ascending"),
        (
            lambda c: c["categories"].append({"id": 10**9, "name": "x"}),
            "category id 1000000000 .* use labels: contiguous",
        ),
    ],
)
def test_annotation_files_are_checked(root, change, message):
    edit(root, change)
    with pytest.raises(UserError, match=message):
        build_dataset(coco_config(root), "val")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        *product(["images"], ["id"], ["1", None, [1], 1.5, True, 10**30]),
        *product(["images"], ["width", "height"], [None, "40", 0, -3, 40.5]),
        *product(["images"], ["file_name"], [None, 3]),
        *product(["annotations"], ["image_id", "category_id"], [None, "1", [1], {}]),
        *product(["annotations"], ["bbox"], [None, 3, {}, [1, 2, 3, "4"], [1, 2, float("nan"), 4], [1, 2, 3, 1e999]]),
        *product(["annotations"], ["iscrowd"], [None, 2, "0", []]),
        *product(["annotations"], ["area"], [None, "9", float("nan")]),
        *product(["categories"], ["id"], [None, "1", -1, [1]]),
    ],
)
def test_fields_of_entries_are_checked(root, section, key, value):
    edit(root, lambda content: content[section][0].update({key: value}))
    with pytest.raises(UserError, match=rf"all\.json: {section}\[0\]\.{key} = .*: expected") as caught:
        build_dataset(coco_config(root), "val")
    assert "\n" not in str(caught.value)


def _split_annotations(root, change):
    """A changed annotation file for val, and the options that select it."""
    path = root / "annotations" / "val.json"
    content = json.loads((root / "annotations" / "all.json").read_text())
    change(content)
    path.write_text(json.dumps(content))
    return {"val_annotations": "annotations/val.json"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["categories"][1].update(name="wasp"), "different names of category id 3: 'bee' and 'wasp'"),
        (lambda c: c["categories"].append({"id": 9, "name": "dog"}), r"different category ids \(only in val: \[9\]\)"),
        (
            lambda c: c.update(categories=[{"id": i, "name": "x"} for i in (2, 3, 7)], annotations=[]),
            r"different category ids \(only in train: \[1\], only in val: \[2\]\)",
        ),
    ],
)
def test_splits_with_other_categories_are_rejected_before_anything_is_built(root, change, message):
    config = coco_config(root, **_split_annotations(root, change))
    with pytest.raises(UserError, match=message):
        dataset_info(config)
    for split in ("train", "val"):
        with pytest.raises(UserError, match=message):
            build_dataset(config, split)


def test_invalid_training_annotations_are_found_before_anything_is_built(root):
    config = coco_config(root, **_split_annotations(root, lambda content: None))
    edit(root, lambda content: content["annotations"][0].update(bbox=[1, 2, -3, 4]))
    with pytest.raises(UserError, match="negative width"):
        dataset_info(config)


def test_size_of_images_is_the_most_common_one_of_the_annotations(root):
    assert dataset_info(coco_config(root)).size == (30, 40)  # each of another size: the first
    edit(root, lambda content: [image.update(width=28, height=20) for image in content["images"][3:]])
    assert dataset_info(coco_config(root)).size == (20, 28)


def test_fingerprint_is_of_the_content_of_both_annotation_files(root, tmp_path):
    config = coco_config(root, **_split_annotations(root, lambda content: None))
    first = dataset_fingerprint(config)
    assert first == dataset_fingerprint(config)
    (root / "annotations" / "all.json").touch()
    moved = root.rename(tmp_path / "moved")
    options = {key: value for key, value in config.dataset.items() if key not in ("name", "root")}
    assert dataset_fingerprint(coco_config(moved, **options)) == first
    edit(moved, lambda content: content["annotations"][0].update(bbox=[5, 4, 10, 11]))
    assert dataset_fingerprint(coco_config(moved, **options)) not in (first, None)
    assert dataset_fingerprint(config) is None


def test_unchanged_file_is_hashed_once_by_a_process(root, monkeypatch):
    config = coco_config(root)
    first = dataset_fingerprint(config)
    monkeypatch.setattr(Path, "open", None)  # would fail
    assert dataset_fingerprint(config) == first


def test_annotations_are_read_again_when_they_change(root):
    assert dataset_info(coco_config(root)).num_classes == 8
    edit(root, lambda content: content["categories"].append({"id": 12, "name": "dog"}))
    assert dataset_info(coco_config(root)).num_classes == 13


def test_large_category_ids_are_numbered_contiguously(root):
    edit(root, lambda content: content["categories"].append({"id": 10**9, "name": "x"}))
    assert dataset_info(coco_config(root, labels="contiguous")).num_classes == 4


def test_crowd_and_area_are_optional(root):
    edit(root, lambda content: [content["annotations"][0].pop(key) for key in ("iscrowd", "area")])
    annotation = build_dataset(coco_config(root), "val").coco.anns[1]
    assert (annotation["iscrowd"], annotation["area"]) == (0, 120)


def test_wrong_options_name_the_key(root, tmp_path):
    with pytest.raises(UserError, match=r"^data\.dataset\.root: .*nowhere: no such folder"):
        dataset_info(coco_config(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"data\.dataset\.val_annotations: .*none\.json: no such file"):
        dataset_info(coco_config(root, val_annotations="annotations/none.json"))
    with pytest.raises(UserError, match="did you mean 'labels'"):
        dataset_info(coco_config(root, label="contiguous"))
    with pytest.raises(UserError, match=r"'category_id' \| 'contiguous'"):
        dataset_info(coco_config(root, labels="names"))
    with pytest.raises(UserError, match="did you mean 'photometric'"):
        dataset_info(coco_config(root, augment={"name": "fotometric"}))


@pytest.mark.parametrize("name", ["../outside.png", "/tmp/outside.png", "a/../../outside.png"])
def test_images_outside_the_folder_are_reported_or_refused(root, caplog, name):
    edit(root, lambda content: content["images"][1].update(file_name=name))
    with pytest.raises(UserError, match="the image file is missing"):
        build_dataset(coco_config(root), "val")
    assert caplog.text.count("1 image outside the image folder; the first") == 1
    with pytest.raises(UserError, match=r"outside = 'refuse': .*all\.json: 1 image outside the image folder"):
        build_dataset(coco_config(root, outside="refuse"), "val")


def test_links_that_lead_out_of_the_folder_are_refused(root, tmp_path):
    first = sorted((root / "pictures").iterdir())[0]
    first.rename(tmp_path / "elsewhere.png")
    first.symlink_to(tmp_path / "elsewhere.png")
    assert len(build_dataset(coco_config(root), "val")) == 5
    with pytest.raises(UserError, match=rf"1 image outside the image folder; the first: '{first.name}'"):
        build_dataset(coco_config(root, outside="refuse"), "val")
    first.unlink()
    first.symlink_to(first.with_name("moved.png"))
    (tmp_path / "elsewhere.png").rename(first.with_name("moved.png"))
    assert len(build_dataset(coco_config(root, outside="refuse"), "val")) == 5


def test_byte_order_mark_and_other_encodings(root):
    path = root / "annotations" / "all.json"
    text = path.read_text()
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(build_dataset(coco_config(root), "val")) == 5
    for encoding in ("utf-16", "latin-1"):
        path.write_bytes(text.replace('"bee"', '"é"').encode(encoding))
        with pytest.raises(UserError, match=r"all\.json: not text in UTF-8 \(.* at byte \d+\)"):
            build_dataset(coco_config(root), "val")
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"all\.json: not a readable JSON file"):
        build_dataset(coco_config(root), "val")
