"""Starting a classifier from weights of another size."""

from pathlib import Path
from typing import Any

import pytest
import torch

from attnzoo import config, models
from attnzoo.errors import UserError
from attnzoo.models import Classifier
from attnzoo.models.vit.weights import stretch

STAGES: dict[str, Any] = {
    "stage1": {"dim": 8, "depth": 2, "heads": 2},
    "stage2": {"dim": 16, "depth": 2, "heads": 2, "second": {"name": "dat"}},
    "stage3": {"depth": 0},
    "stage4": {"depth": 0},
}


def build(**changes: Any) -> Classifier:
    settings = {"image_size": 64, "num_classes": 3, **STAGES, **changes}
    stages = {key: {**STAGES[key], **changes.get(key, {})} for key in STAGES}
    return models.build(config.classifier_config(None, {**settings, **stages}), settings["num_classes"])


@pytest.fixture
def file(tmp_path: Path) -> str:
    torch.save(build().state_dict(), tmp_path / "small.pt")
    return str(tmp_path / "small.pt")


def test_weights_of_the_same_model_are_taken_as_they_are(file: str) -> None:
    state, loaded = torch.load(file), build(weights=file).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_tables_are_stretched_to_larger_images_and_windows(file: str) -> None:
    state = torch.load(file)
    loaded = build(weights=file, image_size=128, stage1={"first": {"window": 9}}).state_dict()
    window = "trunk.stages.0.blocks.0.attention.relative_position_bias_table"
    assert (state[window].shape, loaded[window].shape) == ((169, 2), (289, 2))
    assert loaded[window].mean() == pytest.approx(state[window].mean().item(), abs=5e-3)
    table = "trunk.stages.1.blocks.1.attention.rpe_table.0"
    assert (state[table].shape, loaded[table].shape) == ((2, 15, 15), (2, 31, 31))
    same = "trunk.stages.1.blocks.1.attention.proj_k.weight"
    assert torch.equal(loaded[same], state[same])


def test_stretching_keeps_corners_apart() -> None:
    table = torch.zeros(9, 1)
    table[2] = 1.0  # up and to the right
    large = stretch(table, torch.Size([49, 1])).view(7, 7)
    assert large.argmax() == 6
    assert large[-1, 0] == pytest.approx(0, abs=1e-6)


def test_a_head_for_other_classes_stays_random(file: str) -> None:
    model = build(weights=file, num_classes=7)
    assert model.head.weight.shape == (7, 16)
    assert torch.equal(model.norm.weight, torch.load(file)["norm.weight"])


def test_refusals_name_the_file_and_the_tensor(file: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file nowhere\.pt"):
        build(weights="nowhere.pt")
    with pytest.raises(UserError, match=r"trunk\.patch_embed\.conv\.weight is \(8, 3, 4, 4\), here \(12, 3, 4, 4\)"):
        build(weights=file, stage1={"dim": 12})
    with pytest.raises(UserError, match=r"tensors that the model lacks"):
        build(weights=file, stage1={"depth": 1})
    with pytest.raises(UserError, match=r"lacks \d+ tensors of the model"):
        build(weights=file, stage1={"depth": 3})
    (tmp_path / "list.pt").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"list\.pt is not a state dict"):
        build(weights=str(tmp_path / "list.pt"))
    with pytest.raises(UserError, match="there is no file aaa"):
        build(weights="a" * 5000)


def test_a_file_is_checked_before_anything_is_built(file: str) -> None:
    with torch.device("meta"):
        assert build(weights=file).head.weight.is_meta
        with pytest.raises(UserError, match=r"model\.weights: .* lacks \d+ tensors"):
            build(weights=file, stage1={"depth": 3})
