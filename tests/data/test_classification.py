"""Classification data: digits, folders, timm, augmentation, reproducible samples."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from attnzoo.data.batches import SampleIndex, make_loader
from attnzoo.data.build import build_dataset, dataset_fingerprint, dataset_info
from attnzoo.data.classification import CLASSIFICATION_DATASETS, ClassificationDataset, collate_classification
from attnzoo.data.config import ClassificationDataConfig
from attnzoo.data.rendering import digit_indices
from attnzoo.errors import UserError

DIGITS: dict[str, Any] = {"name": "digits", "image_size": 32, "sizes": [12, 20], "train_images": 60, "val_images": 30}


def dataset(split: str = "train", augment: dict[str, Any] | None = None, **source: Any) -> Any:
    config = ClassificationDataConfig(dataset=source or DIGITS, augment=augment or {"name": "none"})
    return build_dataset(config, split)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of noise, two images each, of different sizes."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, name in enumerate(["cat", "dog"]):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                pixels = random.integers(0, 256, (20 + 8 * i, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels // (label + 1)).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def test_digits_are_deterministic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = [dataset()[i] for i in range(10)]
    monkeypatch.setenv("ATTNZOO_CACHE", str(tmp_path))
    for (image, label), (again, same) in zip(first, [dataset()[i] for i in range(10)], strict=True):
        assert torch.equal(image, again)
        assert label == same


def test_digits_have_ten_classes_and_one_label_each() -> None:
    train = dataset()
    assert len(train) == 60
    assert train.num_classes == 10
    labels = {train[i][1] for i in range(len(train))}
    assert labels <= set(range(10))
    assert len(labels) >= 8


def test_digits_of_train_and_val_are_disjoint() -> None:
    """The split is the one that `digit_scenes` uses."""
    assert not set(digit_indices("train")) & set(digit_indices("val"))
    assert len(dataset("val")) == 30


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"image_size": 8}, "image_size"),
        ({"train_images": 0}, "train_images"),
        ({"objects": [2, 2]}, "no option 'objects'"),
        ({"sizes": [20, 10]}, "sizes"),
    ],
    ids=str,
)
def test_invalid_options_of_digits_are_rejected(option: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataset(**{**DIGITS, **option})


def test_image_folder(folder: Path) -> None:
    train = dataset(name="folder", root=str(folder))
    assert [train[i][1] for i in range(len(train))] == [0, 0, 1, 1]
    assert train[0][0].shape == (3, 20, 30)
    assert dataset_info(ClassificationDataConfig(dataset={"name": "folder", "root": str(folder)})).num_classes == 2


def test_missing_class_folders_are_rejected(folder: Path) -> None:
    with pytest.raises(UserError, match=r"elsewhere/train: no such folder"):
        dataset(name="folder", root=str(folder / "elsewhere"))
    (folder / "val" / "dog").rename(folder / "val" / "wolf")
    message = r"different classes \(only in train: \['dog'\], only in val: \['wolf'\]\)"
    with pytest.raises(UserError, match=message):
        dataset("val", name="folder", root=str(folder))
    with pytest.raises(UserError, match=message):
        dataset_info(ClassificationDataConfig(dataset={"name": "folder", "root": str(folder)}))


def test_error_names_the_damaged_image(folder: Path) -> None:
    (folder / "train" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"image 0 \(.*train/cat/0\.png\) is missing, damaged or unsupported"):
        dataset(name="folder", root=str(folder))[0]


def test_errors_of_transforms_name_the_file(folder: Path) -> None:
    train = dataset(name="folder", root=str(folder))
    train.transform = lambda image: 1 / 0
    with pytest.raises(UserError, match=r"image 2 \(.*train/dog/0\.png\): data\.augment cannot .*ZeroDivisionError"):
        train[2]


def test_timm_reads_the_same_folder(folder: Path) -> None:
    ours = dataset(name="folder", root=str(folder))
    theirs = dataset(name="timm", source="", root=str(folder), num_classes=2)
    assert len(theirs) == len(ours)
    for i in range(len(ours)):
        assert torch.equal(theirs[i][0], ours[i][0])
        assert theirs[i][1] == ours[i][1]


TIMM = {"name": "timm", "source": "", "num_classes": 2}


def info(**source: Any) -> Any:
    return dataset_info(ClassificationDataConfig(dataset=source))


@pytest.mark.parametrize("source", ["", "folder", "torch/image_folder"])
def test_class_folders_that_timm_numbers_differently_are_rejected(folder: Path, source: str) -> None:
    options = TIMM | {"source": source, "root": str(folder)}
    assert info(**options).num_classes == 2
    (folder / "val" / "cat").rename(folder / "val" / "wolf")
    message = r"different classes \(only in train: \['cat'\], only in val: \['wolf'\]\)"
    with pytest.raises(UserError, match=message) as caught:
        info(**options)
    assert caught.value.keys == ("data.dataset.train", "data.dataset.val")
    shutil.rmtree(folder / "val" / "wolf")
    with pytest.raises(UserError, match=r"different classes \(only in train: \['cat'\]\)"):
        dataset("val", **options)


def test_labels_of_timm_are_checked_before_the_start(folder: Path) -> None:
    with pytest.raises(UserError, match=r"data\.dataset\.num_classes = 1: .*train has labels up to 1"):
        info(**TIMM | {"root": str(folder), "num_classes": 1})
    options = TIMM | {"root": str(folder), "options": {"class_map": {"cat": 0, "dog": 1}}}
    shutil.rmtree(folder / "train" / "dog")
    with pytest.raises(UserError, match=r"data\.dataset\.train: .*train has no images of the classes \['dog'\]"):
        info(**options)


def test_empty_class_folders_are_rejected_or_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"name": "folder", "root": str(folder)}
    empty(folder / "val" / "dog")
    assert len(dataset("val", **options)) == 2
    assert f"{folder}/val: no images of the classes ['dog']" in caplog.text
    empty(folder / "val" / "cat")
    with pytest.raises(UserError, match=r"^data\.dataset\.val: the class folders of .*/val have no images"):
        info(**options)
    empty(folder / "train" / "dog")
    Image.new("RGB", (30, 20)).save(folder / "val" / "dog" / "0.png")
    with pytest.raises(UserError, match=r"^data\.dataset\.train: .*/train has no images of the classes \['dog'\]"):
        info(**options)


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("options", [{"name": "folder"}, TIMM], ids=lambda options: options["name"])
def test_fingerprint_is_of_paths_and_sizes(folder: Path, options: dict[str, Any]) -> None:
    def fingerprint(root: Path) -> str | None:
        return dataset_fingerprint(ClassificationDataConfig(dataset=options | {"root": str(root)}))

    first = fingerprint(folder)
    assert first is not None
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    assert fingerprint(folder) == first
    copy = folder / "copy"
    for split in ("train", "val"):
        shutil.copytree(folder / split, copy / split)
    assert fingerprint(copy) == first
    (copy / "val" / "dog" / "1.png").rename(copy / "val" / "dog" / "2.png")
    changed = fingerprint(copy)
    assert changed not in (first, None)
    Image.new("RGB", (90, 90)).save(copy / "train" / "cat" / "1.png")
    (copy / "train" / "cat" / "notes.txt").unlink()
    assert fingerprint(copy) not in (first, changed, None)
    assert fingerprint(folder / "nowhere") is None


READERS: list[dict[str, Any]] = [
    {"name": "folder"},
    {"name": "timm", "source": "", "num_classes": 2},
    {"name": "timm", "source": "torch/image_folder", "num_classes": 2},
]


def readable(reader: dict[str, Any], root: Path) -> Any:
    return dataset("val", root=str(root / "val" if "torch/" in reader.get("source", "") else root), **reader)


@pytest.fixture(params=READERS, ids=lambda reader: reader.get("source") or reader["name"])
def reader(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("mode", ["L", "I;16", "I"])
def test_deep_images_are_scaled(folder: Path, reader: dict[str, Any], mode: str) -> None:
    """As in detection: 16-bit values are scaled to 8 bits, not clipped."""
    gray = np.tile(np.linspace(0, 255, 30).astype(np.uint8), (20, 1))
    pixels = gray if mode == "L" else gray.astype(np.uint16 if mode == "I;16" else np.int32) * 257
    Image.fromarray(pixels).save(folder / "val" / "cat" / "0.png", "TIFF")
    image, label = readable(reader, folder).load_raw(0)
    assert (image.mode, label) == ("RGB", 0)
    np.testing.assert_array_equal(np.asarray(image)[..., 1], gray)


@pytest.mark.parametrize(
    "pixels", [np.ones((20, 30), np.float32), np.full((20, 30), 70_000, np.int32)], ids=["float", "deep"]
)
def test_images_of_unknown_range_are_rejected(folder: Path, reader: dict[str, Any], pixels: Any) -> None:
    Image.fromarray(pixels).save(folder / "val" / "cat" / "0.png", "TIFF")
    with pytest.raises(UserError, match=r"image 0 \(.*val/cat/0\.png\) is missing, damaged or unsupported"):
        readable(reader, folder)[0]


def test_headers_of_validation_images_are_checked_before_training(folder: Path, reader: dict[str, Any]) -> None:
    Image.fromarray(np.ones((20, 30), np.float32)).save(folder / "val" / "dog" / "1.png", "TIFF")
    message = r"image 3 \(.*val/dog/1\.png\) is missing, damaged or unsupported \(the value range of floating-point"
    with pytest.raises(UserError, match=message):
        readable(reader, folder)
    (folder / "val" / "dog" / "1.png").write_bytes(b"no image")
    if reader.get("source") != "":  # timm's own reader skips it
        with pytest.raises(UserError, match=r"image 3 .* is missing, damaged or unsupported"):
            readable(reader, folder)
    else:
        readable(reader, folder)


def test_exif_orientation_is_applied(folder: Path, reader: dict[str, Any]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by a quarter
    Image.fromarray(pixels).save(folder / "val" / "cat" / "0.png", exif=exif)
    image, _ = readable(reader, folder).load_raw(0)
    np.testing.assert_array_equal(np.asarray(image), np.rot90(pixels, -1))


@pytest.mark.parametrize("workers", [0, 1])
def test_12_bit_data_is_reported_once(folder: Path, caplog: pytest.LogCaptureFixture, workers: int) -> None:
    for path in (folder / "val").rglob("*.png"):
        Image.fromarray(np.full((20, 30), 4000, np.uint16)).save(path)
    val = dataset("val", name="folder", root=str(folder))
    list(make_loader(val, [[0], [1]], workers, collate_classification))
    val[2]
    warnings = [record for record in caplog.records if "12-bit" in record.message]
    assert len(warnings) == (workers == 0)  # else a worker has logged it
    assert all("val/cat/0.png): a 16-bit image" in record.message for record in warnings)


def test_options_are_passed_to_timm(folder: Path) -> None:
    options = {"class_map": {"cat": 1, "dog": 0}}
    turned = dataset(name="timm", source="", root=str(folder), num_classes=2, options=options)
    assert sorted(turned[i][1] for i in range(len(turned))) == [0, 0, 1, 1]
    assert turned[0][1] == 1
    with pytest.raises(UserError, match=r"timm cannot open.*colour"):
        dataset(name="timm", source="torch/image_folder", root=str(folder), num_classes=2, options={"colour": 1})


def test_invalid_timm_data_sets_are_rejected(folder: Path) -> None:
    with pytest.raises(UserError, match="timm cannot open"):
        dataset(name="timm", source="torch/no_such_set", root=str(folder), num_classes=2)
    with pytest.raises(UserError, match="num_classes = 0"):
        dataset(name="timm", source="", root=str(folder), num_classes=0)
    with pytest.raises(UserError, match="label 1 out of range for 1 class"):
        ClassificationDataset([(Image.new("RGB", (2, 2)), 1)], 1, lambda image: torch.zeros(3, 2, 2))[0]


AUGMENTATIONS = [{"name": "none"}, {"name": "photometric"}, {"name": "timm", "size": 24}]


@pytest.mark.parametrize("augment", AUGMENTATIONS, ids=lambda a: a["name"])
def test_samples_depend_only_on_index_and_seed(augment: dict[str, Any]) -> None:
    train = dataset(augment=augment)
    first = train[SampleIndex(3, seed=11)][0]
    torch.rand(5), np.random.rand(5)
    assert torch.equal(train[SampleIndex(3, seed=11)][0], first)
    if augment["name"] != "none":
        assert not torch.equal(train[SampleIndex(3, seed=12)][0], first)


@pytest.mark.parametrize("augment", AUGMENTATIONS, ids=lambda a: a["name"])
def test_samples_leave_the_global_generators_unchanged(augment: dict[str, Any]) -> None:
    train = dataset(augment=augment)
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    train[SampleIndex(1, seed=4)]
    assert (torch.rand(1), np.random.rand()) == expected


def test_evaluation_is_deterministic() -> None:
    val = dataset("val", augment={"name": "timm", "size": 24})
    assert torch.equal(val[SampleIndex(0, seed=1)][0], val[SampleIndex(0, seed=2)][0])
    assert val[0][0].shape == (3, 24, 24)


def test_squash_keeps_all_of_a_wide_image(folder: Path) -> None:
    wide = Image.new("RGB", (80, 20))
    wide.paste((255, 255, 255), (0, 0, 8, 20))
    wide.save(folder / "val" / "cat" / "0.png")
    largest = {}
    for mode in ("center", "squash"):
        augment = {"name": "timm", "size": 20, "crop_pct": 1.0, "crop_mode": mode}
        largest[mode] = dataset("val", augment, name="folder", root=str(folder))[0][0].max()
    assert largest["squash"] > 2
    assert largest["center"] < 0


def test_loading_does_not_depend_on_workers() -> None:
    train = dataset(augment={"name": "timm", "size": 24})
    batches = [[SampleIndex(0, 5), SampleIndex(7, 6)], [SampleIndex(2, 7), SampleIndex(3, 8)]]
    in_process, in_worker = (list(make_loader(train, batches, workers, collate_classification)) for workers in (0, 1))
    for one, other in zip(in_process, in_worker, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_batches_of_several_sizes_are_rejected(folder: Path) -> None:
    train = dataset(name="folder", root=str(folder))
    with pytest.raises(UserError, match=r"differ in size \(20x30 and 28x30\)"):
        collate_classification([train[0], train[1]])


def test_registered() -> None:
    assert CLASSIFICATION_DATASETS.names() == ["digits", "folder", "timm"]
