"""Runs are validated, and their options written out, before anything is written."""

import os
from pathlib import Path

import pytest

from attnzoo import run as attnzoo_run
from attnzoo.attention import ATTENTIONS
from attnzoo.config.load import Experiment, digest, load, save
from attnzoo.data.build import check_cache
from attnzoo.errors import ExitCode, UserError
from attnzoo.sweep.check_runs import check_runs
from attnzoo.sweep.expand import RunSpec, expand

SMALL = """
base: base/detr_scenes.yaml
name: small
data: {dataset: {name: digit_scenes, image_size: 32, sizes: [6, 14]}}
model: {dim: 16, heads: 2, ffn: 16, queries: 5}
"""


def valid(folder: Path, *overrides: str) -> list[RunSpec]:
    path = folder / "small.yaml"
    path.write_text(SMALL)
    experiment = Experiment(path, overrides)
    return check_runs(experiment, expand(experiment))


def test_defaults_are_written_out_and_hashed(tmp_path: Path) -> None:
    (plain,) = valid(tmp_path)
    assert plain.config.model.encoder.attention["points"] == 4
    assert plain.config.data.dataset["train_images"] == 8000
    assert plain.config.data.augment["invert"] == 0.3
    (spelt,) = valid(tmp_path, "model.encoder.attention.points=4", "data.dataset.seed=run")
    assert spelt.digest == plain.digest
    (other,) = valid(tmp_path, "model.encoder.attention.points=2")
    assert other.digest != plain.digest


def test_explicit_default_is_not_a_second_variant(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="have the same config"):
        valid(tmp_path, "sweep.grid={model.encoder.attention: [{name: ms_deform}, {name: ms_deform, points: 4}]}")


DAT = "model.backbone={name: dat_pico, options: {image_size: 32}, freeze: null}"


def test_options_of_our_backbones_are_written_out(tmp_path: Path) -> None:
    """The settings of its preset and the defaults of its attentions; dotted and nested keys are equivalent."""
    (plain,) = valid(tmp_path, DAT)
    options = plain.config.model.backbone.options
    assert options["stage2"]["second"]["groups"] == 2
    assert options["stage3"]["second"]["offset_range"] == "tanh"
    assert options["stage1"]["first"] == {"name": "window", "window": 4, "shift": 0, "bias": True, "dropout": 0.0}
    (spelt,) = valid(tmp_path, DAT, "model.backbone.options.stage2.second={groups: 2, offset_range: tanh}")
    (dotted,) = valid(tmp_path, DAT, "model.backbone.options.stage2.second.offset_range=tanh")
    assert plain.digest == spelt.digest == dotted.digest
    (other,) = valid(tmp_path, DAT, "model.backbone.options.stage2.second.groups=1")
    assert other.digest != plain.digest


def test_written_out_backbone_is_read_back(tmp_path: Path) -> None:
    (plain,) = valid(tmp_path, DAT)
    save(plain.config, tmp_path / "config.yaml")
    experiment = Experiment(tmp_path / "config.yaml")
    (again,) = check_runs(experiment, expand(experiment))
    assert again.digest == plain.digest


ONE_PIXEL = ("model.backbone={norm: trained, strides: [32]}", "model.head.two_stage=false", "data.batch_size=2")


def test_batch_norm_with_one_value_per_channel_is_rejected(tmp_path: Path) -> None:
    """The dry run uses the batch of one process; images of 32 pixels have 1 x 1 maps at stride 32."""
    valid(tmp_path, *ONE_PIXEL)
    for override in ("data.batch_size=1", "processes=2"):
        with pytest.raises(UserError, match=r"data\.batch_size: 1 per process on images of 32 x 32.*backbone\.norm"):
            valid(tmp_path, *ONE_PIXEL, override)
    valid(tmp_path, *ONE_PIXEL, "data.batch_size=1", "model.backbone.norm=frozen")


def test_seeds_are_kept(tmp_path: Path) -> None:
    runs = valid(tmp_path, "sweep.seeds=[3, 5]")
    assert [run.config.seed for run in runs] == [run.seed for run in runs] == [3, 5]
    assert len({run.digest for run in runs}) == 1


@pytest.mark.parametrize(
    ("override", "source"),
    [("", "small.yaml: "), ("data.dataset.image_size=8", "command line: "), ("seed=1", "small.yaml: ")],
)
def test_error_names_the_source_of_an_invalid_option(tmp_path: Path, override: str, source: str) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL.replace("image_size: 32", "image_size: 9"))
    experiment = Experiment(path, [override] if override else [])
    with pytest.raises(UserError) as refused:
        check_runs(experiment, expand(experiment))
    source = source if source.startswith("command") else f"{tmp_path}/{source}"
    assert str(refused.value).startswith(f"{source}data.dataset.image_size = ")


def test_sweep_is_named_if_it_set_the_option(tmp_path: Path) -> None:
    grid = "{model.encoder.attention.points: [0, 4]}"
    with pytest.raises(UserError, match=r"^command line: sweep, run points=0-seed=0: .*points = 0"):
        valid(tmp_path, f"sweep.grid={grid}")
    (tmp_path / "sweep.yaml").write_text(f"base: small.yaml\nsweep: {{grid: {grid}}}\n")
    experiment = Experiment(tmp_path / "sweep.yaml", ["jobs=2"])
    with pytest.raises(UserError) as refused:
        check_runs(experiment, expand(experiment))
    assert str(refused.value).startswith(f"{tmp_path}/sweep.yaml: sweep, run points=0-seed=0: ")


def test_run_of_several_is_named_where_the_sweep_is_not_to_blame(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^command line: run seed=0: data\.dataset\.image_size = 8"):
        valid(tmp_path, "data.dataset.image_size=8", "sweep.seeds=[0, 1]")


def test_preset_that_does_not_fit_is_named_where_it_stands(tmp_path: Path) -> None:
    """Not the base file, which sets the key that it does not go with."""
    fault = r"preset detr_r50: model\.head\.refine = true requires model\.head\.boxes = 'relative'"
    with pytest.raises(UserError, match=rf"^command line: {fault}"):
        valid(tmp_path, "model.preset=detr_r50")
    with pytest.raises(UserError, match=rf"^command line: sweep, run b-seed=0: {fault}"):
        valid(tmp_path, "sweep.variants={a: {}, b: {model.preset: detr_r50}}")


def test_profile_that_does_not_fit_is_named_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text("nodes: 2\n")
    with pytest.raises(UserError, match=r"^command line: .*big\.yaml: slurm\.nodes = 2: does not give processes = 1"):
        valid(tmp_path, f"slurm.profile={tmp_path / 'big.yaml'}")


def test_plugins_are_hashed_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ATTENTIONS, "_constructors", dict(ATTENTIONS._constructors))
    (tmp_path / "small.yaml").write_text(SMALL)
    example = (Path(__file__).parents[2] / "docs" / "examples" / "low_rank.py").read_text()
    plugin = tmp_path / "mine.py"
    digests = []
    for folder, content in ((tmp_path, "x = 1"), (tmp_path.parent, "x = 1"), (tmp_path, "x = 2")):
        monkeypatch.chdir(folder)
        plugin.write_text(f"{example}{content}\n")
        config = load(tmp_path / "small.yaml", ["plugins=[mine.py]"])
        assert config.plugins == [str(plugin)]
        digests.append(digest(config))
    assert digests[0] == digests[1] != digests[2]


CACHES = {
    "{}/file": "{}/file: is a file; name a folder",
    "{}/file/below": "{}/file/below: {}/file is not a folder",
    "/dev/null": "/dev/null: is a file; name a folder",
    "/dev/null/below": "/dev/null/below: /dev/null is not a folder",
    "{}/" + "a" * 300: "{}/" + "a" * 300 + ": File name too long",
    "{}/loop": "{}/loop: Too many levels of symbolic links",
    "{}/taken": "{}/taken/digit_scenes: is a file; name a folder",
}


@pytest.mark.parametrize("launcher", ["local", "slurm"])
@pytest.mark.parametrize(("cache", "message"), CACHES.items(), ids=lambda text: text[:20])
def test_a_cache_that_cannot_be_is_refused_before_any_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cache: str,
    message: str,
    launcher: str,
) -> None:
    """Each run started, and failed; then the costs were measured."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "digit_scenes").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNZOO_CACHE", cache.format(tmp_path))
    (tmp_path / "x.yaml").write_text("base: base/detr_scenes.yaml\nname: x\nsweep: {seeds: [0, 1]}\n")
    assert attnzoo_run.main(["x.yaml", f"launcher={launcher}"]) == ExitCode.USER_ERROR
    assert capsys.readouterr().err == f"error: ATTNZOO_CACHE = {message.format(tmp_path, tmp_path)}\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED HERE: changing the user needs root")
def test_only_the_local_launcher_must_be_able_to_write_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes may have other permissions than the login node, and a cache may be shared and full."""
    monkeypatch.setenv("ATTNZOO_CACHE", "/proc/cache")
    config = load("experiments/base/detr_scenes.yaml", ["name=x"]).data
    os.setresuid(65534, 65534, 0)  # `os.access` asks for the real user
    try:
        check_cache(config, 0, writable=False)
        with pytest.raises(UserError, match=r"^ATTNZOO_CACHE = /proc/cache: the folder /proc cannot be written to$"):
            check_cache(config, 0, writable=True)
    finally:
        os.setresuid(0, 0, 0)
