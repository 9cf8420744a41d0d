"""COCO folders: valid, invalid, and unusual ones."""

import re
import traceback

import numpy as np
import pytest
import torch
from PIL import Image
from support.data import SIZES, coco_config, edit, picture

from attnzoo.data.batches import make_loader
from attnzoo.data.build import build_dataset, dataset_info
from attnzoo.data.pixels import MEAN, STD
from attnzoo.errors import UserError


def test_boxes_are_clipped_and_crowds_and_empty_boxes_dropped(root):
    dataset = build_dataset(coco_config(root), "train")
    image, target = dataset[0]
    width, height = SIZES[0]
    torch.testing.assert_close(
        target["boxes"] * torch.tensor([width, height] * 2), torch.tensor([[10.0, 10, 10, 12], [5, 5, 10, 10]])
    )
    assert target["labels"].tolist() == [3, 7]
    assert target["size"].tolist() == target["orig_size"].tolist() == [height, width]
    expected = (picture(width, height, 1) / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert dataset[1][1]["labels"].tolist() == [7]
    assert dataset[3][1]["boxes"][0].tolist() == pytest.approx([26.5 / 33, 15 / 20, 13 / 33, 10 / 20])


def test_empty_images_are_kept_unless_the_option_drops_them_from_train(root):
    assert [len(build_dataset(coco_config(root), split)) for split in ("train", "val")] == [5, 5]
    config = coco_config(root, keep_empty_images=False)
    assert build_dataset(config, "train").image_ids == [1, 2, 4, 5]
    assert len(build_dataset(config, "val")) == 5
    _, target = build_dataset(coco_config(root), "val")[2]
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].dtype == torch.int64


@pytest.mark.parametrize("box", [[5, 4, -10, 12], [5, 4, 10, -0.5]])
def test_boxes_of_negative_size_are_rejected(root, box):
    edit(root, lambda content: content["annotations"][3].update(bbox=box, id=77))
    with pytest.raises(UserError, match=r"all\.json: annotations\[3\] with id 77: bbox = .* negative width or height"):
        build_dataset(coco_config(root), "train")


def _all_boxes(box, crowd=0):
    return lambda content: [a.update(bbox=box, iscrowd=crowd) for a in content["annotations"]]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(annotations=[]),
        _all_boxes([1, 1, 9, 9], crowd=1),
        _all_boxes([60, 5, 9, 9]),  # outside
        _all_boxes([5, 5, 9, 0]),
    ],
    ids=["none", "crowds", "outside", "empty"],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_every_split_needs_an_object(root, change, split):
    (root / "annotations" / "usable.json").write_text((root / "annotations" / "all.json").read_text())
    edit(root, change)
    other = {"train": "val", "val": "train"}[split]
    config = coco_config(root, **{f"{other}_annotations": "annotations/usable.json"})
    for build in (lambda: dataset_info(config), lambda: build_dataset(config, split)):
        with pytest.raises(
            UserError, match=rf"^data\.dataset\.{split}_annotations: .*all\.json has no usable objects"
        ) as caught:
            build()
        assert caught.value.keys == (f"data.dataset.{split}_annotations",)


def test_objects_in_unreadable_images_are_not_usable(root):
    for name in ("1.png", "2.png", "4.png", "5.png"):
        (root / "pictures" / name).write_bytes(b"")
    for split in ("train", "val"):
        with pytest.raises(UserError, match=rf"^data\.dataset\.{split}_annotations: .* no usable objects"):
            build_dataset(coco_config(root, on_error="skip"), split)


def test_dropped_boxes_are_counted_and_the_first_is_named(root, caplog):
    build_dataset(coco_config(root), "train")
    assert re.search(r"all\.json: 1 of 6 boxes are empty .*; the first: \[8, 8, 0, 5\] of 1\.png", caplog.text)
    assert "and not trained on; the first" in caplog.text
    assert "under a pixel" not in caplog.text
    caplog.clear()
    build_dataset(coco_config(root), "val")
    assert "1 of 6 boxes are empty or outside their image and cannot be detected" in caplog.text
    assert "trained" not in caplog.text
    edit(root, lambda content: content["annotations"][3].update(bbox=[60, 3, 4, 4]))
    build_dataset(coco_config(root, keep_empty_images=False), "train")
    assert re.search(r"all\.json: 2 of 6 boxes are empty or outside", caplog.text)
    assert build_dataset(coco_config(root, keep_empty_images=False), "train").image_ids == [1, 4, 5]


def test_boxes_as_fractions_are_reported(root, caplog):
    edit(root, lambda content: content["annotations"][-1].update(bbox=[0.1, 0.2, 12, 0.5]))
    build_dataset(coco_config(root), "train")
    assert re.search(r"1 of 6 boxes are under a pixel .*; the first: \[0\.1, 0\.2, 12, 0\.5\] of 5\.png", caplog.text)


def test_labels_are_category_ids_or_contiguous(root):
    assert dataset_info(coco_config(root)).num_classes == 8
    dataset = build_dataset(coco_config(root, labels="contiguous"), "train")
    assert (dataset.num_classes, dataset.class_names) == (3, ["ant", "bee", "cat"])
    assert dataset[0][1]["labels"].tolist() == [1, 2]
    assert build_dataset(coco_config(root), "train").class_names == ["N/A", "ant", "N/A", "bee", *["N/A"] * 3, "cat"]


def test_floating_point_validation_images_are_refused_before_training(root):
    width, height = SIZES[2]
    Image.fromarray(np.ones((height, width), np.float32)).save(root / "pictures" / "3.png", "TIFF")
    with pytest.raises(UserError, match=r"3\.png: .* unsupported \(the value range of floating-point pixels"):
        build_dataset(coco_config(root), "val")


def test_sizes_of_validation_images_are_checked_before_training(root):
    height = SIZES[4][1]
    edit(root, lambda content: content["images"][4].update(height=height + 1))
    build_dataset(coco_config(root), "train")
    with pytest.raises(UserError, match=r"pictures/5\.png: image size 28x28 does not match the annotation \(28x29\)"):
        build_dataset(coco_config(root), "val")


@pytest.mark.parametrize("shape", [(1, 2000), (2000, 1), (1, 3000), (1, 1)])
def test_images_of_one_row_or_column_are_resized(root, shape):
    """Their shorter side is at least one pixel."""
    height, width = shape
    Image.fromarray(picture(width, height, 0)).save(root / "pictures" / "3.png")
    edit(root, lambda content: content["images"][2].update(height=height, width=width))
    image, target = build_dataset(coco_config(root, {"name": "detr", "eval_scale": 20, "scales": [20]}), "val")[2]
    assert min(image.shape[-2:]) == (20 if shape == (1, 1) else 1)
    assert target["orig_size"].tolist() == list(shape)


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_transforms_name_the_file(root, workers):
    def transform(image, target):
        raise error("cannot\nflip")

    dataset = build_dataset(coco_config(root), "val")
    dataset.transform = transform
    error = RuntimeError
    with pytest.raises(UserError, match=r"3\.png: data\.augment cannot .* \(RuntimeError: cannot flip\)$") as caught:
        list(make_loader(dataset, [[2]], workers))
    assert "\n" not in str(caught.value)
    error = TypeError  # a mistake in the code keeps its traceback
    with pytest.raises(TypeError) as wrong:
        list(make_loader(dataset, [[2]], workers))
    assert "3.png" in "".join(traceback.format_exception(wrong.value))


def test_missing_and_truncated_images_name_the_file(root):
    (root / "pictures" / "2.png").unlink()
    with pytest.raises(UserError, match=r"pictures/2\.png: the image file is missing"):
        build_dataset(coco_config(root), "val")


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
@pytest.mark.parametrize("fraction", [0.0, 0.02, 0.5, 0.9])
def test_truncated_image_is_rejected_or_skipped_with_a_count(root, image_format, fraction, caplog):
    path = root / "pictures" / "3.png"
    Image.open(path).save(path, image_format)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])
    with pytest.raises(UserError, match=r"pictures/3\.png: the image file is damaged"):
        build_dataset(coco_config(root), "val")[2]
    (root / "pictures" / "5.png").unlink()
    dataset = build_dataset(coco_config(root, on_error="skip"), "val")
    assert dataset.image_ids == [1, 2, 4]
    assert "2 of 5 images are skipped" in caplog.text


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_every_pixel_format_becomes_rgb(root, mode):
    gray = np.tile(np.linspace(0, 255, 50).astype(np.uint8), (50, 1))
    path = root / "pictures" / "3.png"
    if mode == "I;16":
        Image.fromarray(gray.astype(np.uint16) * 257).save(path)
    elif mode == "P":
        Image.fromarray(gray).quantize(256).save(path)
    else:
        Image.fromarray(gray).convert("RGB").convert(mode).save(path, "TIFF" if mode == "CMYK" else "PNG")
    image, _ = build_dataset(coco_config(root), "val").load_raw(2)
    assert (image.shape, image.dtype) == ((3, 50, 50), torch.uint8)
    if mode != "1":
        np.testing.assert_allclose(image[1].numpy(), gray, atol=6)


def test_12_bit_data_is_reported_once_with_the_first_file(root, caplog):
    for number in (3, 5):
        path = root / "pictures" / f"{number}.png"
        width, height = SIZES[number - 1]
        Image.fromarray(np.full((height, width), 4000, np.uint16)).save(path)
    dataset = build_dataset(coco_config(root), "val")
    for index in (2, 4, 2):
        dataset[index]
    assert caplog.text.count("12-bit") == 1
    assert "pictures/3.png: a 16-bit image with values up to 4000" in caplog.text


def test_exif_orientation_is_applied_where_the_annotation_agrees(root):
    path = root / "pictures" / "1.png"
    width, height = SIZES[0]
    stored = picture(height, width, 9)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by a quarter
    Image.fromarray(stored).save(path, exif=exif)
    image, _ = build_dataset(coco_config(root), "val").load_raw(0)
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.rot90(stored, -1))

    edit(root, lambda content: content["images"][0].update(width=height, height=width))
    image, _ = build_dataset(coco_config(root), "val").load_raw(0)  # annotated as stored
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), stored)

    edit(root, lambda content: content["images"][0].update(width=17))
    with pytest.raises(UserError, match=r"1\.png: image size 30x40 or 40x30 does not match the annotation \(17x40\)"):
        build_dataset(coco_config(root), "val").load_raw(0)
