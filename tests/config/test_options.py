"""Options of attentions, data sets, augmentations and plugins are checked when an experiment is loaded."""

from pathlib import Path

import pytest

from attnzoo.attention import ATTENTIONS
from attnzoo.config.load import load
from attnzoo.errors import UserError

OPTIONS = [
    ("encoder: {attention: {points: four}}", "model.encoder.attention.points = 'four': expected int"),
    (
        "encoder: {attention: {pionts: 4}}",
        "has no option 'pionts'; did you mean 'points'? (options: points, offsets, weights, sampling)",
    ),
    (
        "encoder: {attention: {where: 4}}",
        "attention 'ms_deform' has no option 'where' (options: points, offsets, weights, sampling)",
    ),
    ("decoder: {attention: {name: dens}}", "attention.name: unknown attention 'dens'; did you mean 'dense'?"),
    ("backbone: {name: dat_pico, options: {stage2: {second: {groups: x}}}}", "options.stage2.second.groups = 'x'"),
    ("backbone: {name: dat_pico, options: {stage2: {second: {name: x}}}}", "stage2.second.name: unknown attention 'x'"),
    (
        "backbone: {name: dat_pico, options: {stage2: {dim: x}}}",
        "options: stage2.dim = 'x': expected int",
    ),
    ("backbone: {name: dat_pico, options: {stage: {dim: 4}}}", "model.backbone.options: unknown key 'stage'"),
]


@pytest.mark.parametrize(("model", "message"), OPTIONS)
def test_options_of_named_blocks_are_checked(tmp_path: Path, model: str, message: str) -> None:
    """The message names the file, even where a later one sets other options of the same block."""
    (tmp_path / "low.yaml").write_text(f"train: {{steps: 5}}\nmodel: {{{model}}}\n")
    (tmp_path / "top.yaml").write_text("base: low.yaml\nname: top\nmodel: {dim: 64}\n")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "top.yaml", ["train.clip=1"])
    assert str(caught.value).startswith(f"{tmp_path}/low.yaml: model.")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{dataset: {train_images: many}}", "data.dataset.train_images = 'many': expected int"),
        ("{dataset: {name: digit_scene}}", "data.dataset.name: unknown data set 'digit_scene'; did you mean"),
        ("{augment: {name: none, flip: 1}}", "data.augment: augmentation 'none' has no option 'flip'"),
        ("{augment: {name: photometrics}}", "data.augment.name: unknown augmentation 'photometrics'; did you mean"),
    ],
)
def test_options_of_data_are_checked(tmp_path: Path, data: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(f"name: x\ntrain: {{steps: 5}}\ndata: {data}\n")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "x.yaml")
    assert str(caught.value).startswith(f"{tmp_path}/x.yaml: {message}")


def test_options_of_plugins_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ATTENTIONS, "_constructors", dict(ATTENTIONS._constructors))
    (tmp_path / "mine.py").write_text(
        "from attnzoo.attention import Attention, register\n\n\n"
        "@register('mine_checked')\nclass Mine(Attention):\n"
        "    def __init__(self, slot, *, size: int = 3):\n        super().__init__(slot)\n"
    )
    (tmp_path / "x.yaml").write_text(
        "name: x\nplugins: [mine.py]\ntrain: {steps: 5}\nmodel: {encoder: {attention: {name: mine_checked}}}\n"
    )
    assert load(tmp_path / "x.yaml").model.encoder.attention == {"name": "mine_checked", "size": 3}
    with pytest.raises(UserError, match=r"^command line: model\.encoder\.attention\.size = 'x': expected int"):
        load(tmp_path / "x.yaml", ["model.encoder.attention.size=x"])
    with pytest.raises(UserError, match=r"^command line: plugins: plugin '.*gone\.py': no such file"):
        load(tmp_path / "x.yaml", ["plugins=[gone.py]"])
