"""Loading pretrained weights of another size into classifiers and backbones."""

from pathlib import Path
from typing import Any

import pytest
import torch

from attnzoo import models
from attnzoo.errors import UserError
from attnzoo.models import presets
from attnzoo.models.backbone import Backbone
from attnzoo.models.config import BackboneConfig
from attnzoo.models.vit.classifier import Classifier
from attnzoo.models.weights.resize import resize_position_bias

STAGES: dict[str, Any] = {
    "stage1": {"dim": 8, "depth": 2, "heads": 2},
    "stage2": {"dim": 16, "depth": 2, "heads": 2, "second": {"name": "dat"}},
    "stage3": {"depth": 0},
    "stage4": {"depth": 0},
}


def build(**changes: Any) -> Classifier:
    settings = {"image_size": 64, "num_classes": 3, **STAGES, **changes}
    stages = {key: {**STAGES[key], **changes.get(key, {})} for key in STAGES}
    return models.build(presets.classifier_config(None, {**settings, **stages}), settings["num_classes"])


@pytest.fixture
def file(tmp_path: Path) -> str:
    torch.save(build().state_dict(), tmp_path / "small.pt")
    return str(tmp_path / "small.pt")


def test_weights_of_the_same_model_are_loaded_unchanged(file: str) -> None:
    state, loaded = torch.load(file), build(weights=file).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_tables_are_resized_for_larger_images_and_windows(file: str) -> None:
    state = torch.load(file)
    loaded = build(weights=file, image_size=128, stage1={"first": {"window": 9}}).state_dict()
    window = "trunk.stages.0.blocks.0.attention.relative_position_bias_table"
    assert (state[window].shape, loaded[window].shape) == ((169, 2), (289, 2))
    assert loaded[window].mean() == pytest.approx(state[window].mean().item(), abs=5e-3)
    table = "trunk.stages.1.blocks.1.attention.rpe_table.0"
    assert (state[table].shape, loaded[table].shape) == ((2, 15, 15), (2, 31, 31))
    same = "trunk.stages.1.blocks.1.attention.proj_k.weight"
    assert torch.equal(loaded[same], state[same])


def test_resizing_keeps_the_orientation() -> None:
    table = torch.zeros(9, 1)
    table[2] = 1.0  # top right
    large = resize_position_bias(table, torch.Size([49, 1])).view(7, 7)
    assert large.argmax() == 6
    assert large[-1, 0] == pytest.approx(0, abs=1e-6)


def test_head_for_other_classes_keeps_its_initialisation(file: str) -> None:
    model = build(weights=file, num_classes=7)
    assert model.head.weight.shape == (7, 16)
    assert torch.equal(model.norm.weight, torch.load(file)["norm.weight"])


def test_errors_name_the_file_and_the_tensor(file: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.pt: no such file"):
        build(weights="nowhere.pt")
    with pytest.raises(
        UserError,
        match=r"patch_embed\.conv\.weight: \(8, 3, 4, 4\) in the file, \(12, 3, 4, 4\) in",
    ):
        build(weights=file, stage1={"dim": 12})
    with pytest.raises(UserError, match=r"has \d+ unexpected keys"):
        build(weights=file, stage1={"depth": 1})
    with pytest.raises(UserError, match=r"has \d+ missing keys"):
        build(weights=file, stage1={"depth": 3})
    (tmp_path / "list.pt").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"list\.pt is not a state dict"):
        build(weights=str(tmp_path / "list.pt"))
    with pytest.raises(UserError, match="no such file"):
        build(weights="a" * 5000)


def test_file_is_checked_on_the_meta_device(file: str) -> None:
    with torch.device("meta"):
        assert build(weights=file).head.weight.is_meta
        with pytest.raises(UserError, match=r"model\.weights: .* has \d+ missing keys"):
            build(weights=file, stage1={"depth": 3})


def backbone(weights: str, strides: tuple[int, ...] = (4, 8), **options: Any) -> Backbone:
    stages = {key: {**STAGES[key], **options.pop(key, {})} for key in STAGES}
    settings = {"image_size": 64, **stages, **options}
    return Backbone(BackboneConfig("swin_tiny", settings, list(strides), norm="trained", weights=weights))


def test_backbone_loads_the_trunk_of_a_classifier(file: str) -> None:
    """Its norms keep their initialisation, tables are resized to the image size, unused stages are ignored."""
    state, loaded = torch.load(file), backbone(file, image_size=256).body.state_dict()
    table = "trunk.stages.1.blocks.1.attention.rpe_table.0"
    assert (state[table].shape, loaded[table].shape) == ((2, 15, 15), (2, 63, 63))
    assert {name for name in loaded if name not in state} == {
        f"norms.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    }
    for name in loaded.keys() & state.keys() - {table}:
        assert torch.equal(loaded[name], state[name]), name
    first = backbone(file, strides=(4,)).body.state_dict()
    assert all(torch.equal(first[name], state[name]) for name in first.keys() & state.keys())
    assert not any("stages.1" in name for name in first)


def test_backbone_rejects_mismatched_weights(file: str) -> None:
    with pytest.raises(
        UserError, match=r"model\.backbone\.weights: .*conv\.weight: \(8, 3, 4, 4\) in the file, \(12, 3, 4, 4\)"
    ):
        backbone(file, stage1={"dim": 12})
    with pytest.raises(UserError, match=r"model\.backbone\.weights: .* has \d+ missing keys"):
        backbone(file, stage1={"depth": 3})
    with pytest.raises(UserError, match=r"bias_table: \(169, 2\) in the file, \(169, 4\)"):
        backbone(file, stage2={"heads": 4})


def test_mlp_bias_is_not_resized(tmp_path: Path) -> None:
    """Its parameters share the key prefix of tables."""
    second = {"second": {"name": "dat", "bias": "mlp", "mlp_dim": 8}}
    torch.save(build(stage2=second).state_dict(), tmp_path / "mlp.pt")
    with pytest.raises(UserError, match=r"rpe_table\.0\.0\.weight: \(8, 2\) in the file, \(16, 2\)"):
        build(weights=str(tmp_path / "mlp.pt"), stage2={"second": {"name": "dat", "bias": "mlp", "mlp_dim": 16}})
