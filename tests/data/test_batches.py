"""Batch samplers, collate function and loader."""

import itertools

import pytest
import torch
from support.data import coco_config
from torch.utils.data import Dataset

from attnzoo.data.batches import EpochBatchSampler, SampleIndex, collate, make_loader, val_batch_indices
from attnzoo.data.build import build_dataset
from attnzoo.data.pixels import Photometric, apply_to_pixels
from attnzoo.errors import UserError

DETR = {
    "name": "detr",
    "scales": [32, 40],
    "max_size": 60,
    "crop_scales": [30],
    "crop_size": [16, 24],
    "eval_scale": 32,
}


def assert_equal(one, other):
    torch.testing.assert_close(one.images, other.images, rtol=0, atol=0)
    torch.testing.assert_close(one.mask, other.mask, rtol=0, atol=0)
    for a, b in zip(one.targets, other.targets, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_epochs_are_shuffled_by_seed_and_epoch():
    samples = [sample for batch in EpochBatchSampler(23, 4, seed=1, epoch=2) for sample in batch]
    assert len(samples) == 20
    assert len({sample.index for sample in samples}) == len({sample.seed for sample in samples}) == 20
    assert list(EpochBatchSampler(23, 4, seed=1, epoch=2)) == list(EpochBatchSampler(23, 4, seed=1, epoch=2))
    first = [next(iter(EpochBatchSampler(23, 4, *key))) for key in ((1, 2), (1, 3), (2, 2), (2, 1))]
    assert all(a != b for a, b in itertools.combinations(first, 2))


@pytest.mark.parametrize("start", [0, 1, 4, 5, 9])
def test_start_skips_the_first_batches(start):
    tail = EpochBatchSampler(23, 4, 0, 0, start=start)
    assert list(tail) == list(EpochBatchSampler(23, 4, 0, 0))[start:]
    assert len(tail) == len(list(tail))


def test_ranks_get_contiguous_slices_of_each_batch():
    parts = [list(EpochBatchSampler(23, 6, 0, 0, rank, 3)) for rank in range(3)]
    assert [a + b + c for a, b, c in zip(*parts, strict=True)] == list(EpochBatchSampler(23, 6, 0, 0))


def test_invalid_batch_sizes_are_rejected():
    with pytest.raises(UserError, match=r"data\.batch_size = 5: expected a positive multiple of the 2"):
        EpochBatchSampler(23, 5, 0, 0, 0, 2)
    with pytest.raises(UserError, match=r"larger than the training set \(3 images\)"):
        EpochBatchSampler(3, 4, 0, 0)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_validation_batches_do_not_depend_on_the_number_of_ranks(world):
    assert val_batch_indices(7, 3) == [range(3), range(3, 6), range(6, 7)]
    parts = [val_batch_indices(7, 3, rank, world) for rank in range(world)]
    assert sorted((batch for part in parts for batch in part), key=list) == val_batch_indices(7, 3)


def test_padding_is_masked_and_zero(root):
    dataset = build_dataset(coco_config(root), "val")
    batch = collate([dataset[0], dataset[1]])
    assert batch.images.shape == (2, 3, 36, 40)
    for image, mask, sample in zip(batch.images, batch.mask, (dataset[0], dataset[1]), strict=True):
        _, h, w = sample[0].shape
        assert not mask[:h, :w].any()
        assert mask.sum() == 36 * 40 - h * w
        assert torch.equal(image[:, :h, :w], sample[0])
        assert not image[:, mask].any()
    assert collate([dataset[2], dataset[2]]).mask is None
    moved = batch.to("meta")
    assert {moved.images.device.type, moved.mask.device.type, moved.targets[0]["boxes"].device.type} == {"meta"}


def test_workers_and_global_random_state_change_nothing(root):
    dataset = build_dataset(coco_config(root, DETR), "train")
    batches = list(itertools.chain.from_iterable(EpochBatchSampler(5, 2, 0, epoch) for epoch in range(2)))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    in_process = list(make_loader(dataset, batches))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    in_workers = list(make_loader(dataset, batches, num_workers=2))
    assert len(in_process) == len(in_workers) == 4
    for one, other in zip(in_process, in_workers, strict=True):
        assert_equal(one, other)


def test_skipped_batches_are_not_read(root):
    dataset = build_dataset(coco_config(root), "train")
    tail = EpochBatchSampler(5, 2, 0, 0, start=1)
    used = {sample.index for batch in tail for sample in batch}
    for i in set(range(5)) - used:
        (root / "pictures" / f"{i + 1}.png").unlink()
    assert len(list(make_loader(dataset, tail, num_workers=1))) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_file_gives_a_one_line_error(root, workers):
    dataset = build_dataset(coco_config(root), "train")
    (root / "pictures" / "1.png").write_bytes(b"none")
    with pytest.raises(UserError) as caught:
        list(make_loader(dataset, [[0]], workers))
    assert "\n" not in str(caught.value)
    assert "1.png: the image file is damaged" in str(caught.value)


class Refusing(Dataset):
    def __getitem__(self, index):
        raise UserError("its text may contain UserError: as here", key="data.dataset")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_keeps_its_text_and_key(workers):
    with pytest.raises(UserError) as caught:
        list(make_loader(Refusing(), [[0]], workers))
    assert str(caught.value) == "its text may contain UserError: as here"
    assert caught.value.keys == ("data.dataset",)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_collate_keeps_its_key(workers):
    def refuse(samples):
        raise UserError("no", key="data.augment")

    with pytest.raises(UserError) as caught:
        list(make_loader([0], [[0]], workers, refuse))
    assert caught.value.keys == ("data.augment",)


def test_samples_depend_only_on_index_and_seed(root):
    dataset = build_dataset(coco_config(root, DETR), "train")
    shapes = set()
    for seed in range(12):
        image, target = dataset[SampleIndex(0, seed)]
        again, target_again = build_dataset(coco_config(root, DETR), "train")[SampleIndex(0, seed)]
        assert torch.equal(image, again)
        assert torch.equal(target["boxes"], target_again["boxes"])
        shapes.add(tuple(image.shape))
    assert len(shapes) > 2


@pytest.mark.parametrize("sizes", [[(20, 30)] * 4, [(20, 30), (20, 30), (15, 40), (20, 31)]])
def test_pixels_of_a_batch_equal_those_of_single_images(sizes):
    """Of equal sizes, which are transformed at once, and of several."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    transform = Photometric(gain=0.15, offset=0.08, invert=0.5)
    together = apply_to_pixels(transform, images, [5, 6, 7, 8])
    for image, seed, result in zip(images, [5, 6, 7, 8], together, strict=True):
        assert torch.equal(apply_to_pixels(transform, [image], [seed])[0], result)
        assert not torch.equal(apply_to_pixels(transform, [image], [seed + 1])[0], result)
