"""A config.json or preprocessor_config.json that is malformed: one line with the file and its key."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attnzoo.__main__ import main

DETR, DEFORMABLE, SWIN = ({"model_type": name} for name in ("detr", "deformable_detr", "swin"))
RESNET = {"model_type": "resnet"}
WHOLE, COUNT, WHOLES = "a whole number", "a whole number, at least 1", "a list of whole numbers"
CONFIGS: list[tuple[dict[str, Any], str]] = [
    (SWIN | {"depths": "many"}, f": config.json: depths = 'many': expected {WHOLES}"),
    (SWIN | {"depths": [2, 2, "a", 2]}, f": config.json: depths = [2, 2, a, 2]: expected {WHOLES}"),
    (SWIN | {"depths": []}, ": config.json: depths = []: expected 1 to 4 numbers"),
    (SWIN | {"num_heads": [3, 6]}, ": config.json: num_heads = [3, 6]: expected 4 numbers, as depths"),
    (SWIN | {"window_size": "x"}, f": config.json: window_size = 'x': expected {COUNT}"),
    (SWIN | {"embed_dim": None}, f": config.json: embed_dim = null: expected {COUNT}"),
    (
        SWIN | {"drop_path_rate": 2.0},
        "/config.json: drop_path_rate: model.drop_path = 2.0: expected a number",
    ),
    (SWIN | {"depths": [2, 2, -1, 2]}, "/config.json: depths: model.stage3.depth = -1: expected a number at least 0"),
    (DETR | {"d_model": "many"}, f": config.json: d_model = 'many': expected {WHOLE}"),
    (DETR | {"num_queries": -3}, "/config.json: num_queries: model.queries = -3: expected a number at least 1"),
    (DETR | {"dropout": "x"}, ": config.json: dropout = 'x': expected a number"),
    (DETR | {"dilation": "yes"}, ": config.json: dilation = 'yes': expected true or false"),
    (DETR | {"backbone": 3}, ": config.json: backbone = 3: expected a name or null"),
    (DETR | {"backbone_kwargs": "x"}, ": config.json: backbone_kwargs = 'x': expected a mapping or null"),
    (DETR | {"backbone_kwargs": {"out_indices": "x"}}, f"backbone_kwargs.out_indices = 'x': expected {WHOLES} or null"),
    (DETR | {"backbone_config": RESNET | {"depths": "x"}}, f"backbone_config.depths = 'x': expected {WHOLES}"),
    (
        DETR | {"backbone_config": RESNET | {"out_features": ["stageX"]}},
        "= [stageX]: expected stage1 … stage4",
    ),
    (DEFORMABLE | {"num_feature_levels": 0}, f": config.json: num_feature_levels = 0: expected {COUNT}"),
    ({"family": "detector", "settings": {"dim": "x"}}, ": config.json: model: dim = 'x': expected int"),
    ({"family": "detector", "settings": {}, "augment": "x"}, "/config.json: data.augment = 'x': expected a mapping"),
]
SIZES: list[tuple[dict[str, Any], Any, str]] = [
    (DETR, "x", f": preprocessor_config.json: size = 'x': expected {COUNT}"),
    (DETR, {"shortest_edge": None}, f": preprocessor_config.json: size.shortest_edge = null: expected {COUNT}"),
    (DETR, {"shortest_edge": 800, "longest_edge": "q"}, "size.longest_edge = 'q': expected"),
    (SWIN, {"height": -1, "width": -1}, f": preprocessor_config.json: size.height = -1: expected {COUNT}"),
]


def error_of(folder: Path, config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    assert main(["weights", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(("config", "message"), CONFIGS, ids=lambda value: str(value)[-40:])
def test_config(config: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They were tracebacks, or errors about keys on a command line that had none."""
    error = error_of(tmp_path, config, capsys)
    assert error.startswith(f"error: {tmp_path}")
    assert message in error
    assert "config.json" in error


@pytest.mark.parametrize(("config", "size", "message"), SIZES)
def test_preprocessor(
    config: dict[str, Any], size: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    assert message in error_of(tmp_path, config, capsys)
