from dataclasses import replace
from pathlib import Path

import pytest

from attnzoo.config.load import Experiment, digest, load, save
from attnzoo.errors import UserError
from attnzoo.models import presets

EXPERIMENT = """
name: small
model:
  encoder: {attention: {name: ms_deform, points: 4}}
  backbone: {name: resnet18, options: {layers: [1, 1, 1, 1]}}
train: {steps: 5}
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(EXPERIMENT)
    return path


def test_bases_are_merged_first_and_may_have_bases(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "low.yaml").write_text("seed: 1\nthreads: 1\ntrain: {steps: 7, clip: 1.0}\n")
    (tmp_path / "base" / "mid.yaml").write_text("base: low.yaml\nthreads: 2\ntrain: {clip: 2.0}\n")
    (tmp_path / "top.yaml").write_text("base: [base/mid.yaml]\nname: top\ntrain: {clip: 3.0}\n")
    config = load(tmp_path / "top.yaml")
    assert (config.seed, config.threads, config.train.steps, config.train.clip) == (1, 2, 7, 3.0)


def test_a_base_comes_from_the_package_if_it_is_not_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: base/detr_scenes.yaml\nname: mine\n")
    assert load(tmp_path / "mine.yaml").model.head.two_stage


def test_bases_that_build_on_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(UserError, match=r"build on each other: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        load(tmp_path / "a.yaml")


def test_a_missing_base_suggests_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: base/detr_scene.yaml\n")
    with pytest.raises(UserError, match=r"no such file 'base/detr_scene.yaml'; did you mean 'base/detr_scenes.yaml'"):
        load(tmp_path / "a.yaml")


def test_the_packaged_experiments_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("experiments/ablate_points.yaml").name == "ablate_points"
    with pytest.raises(UserError, match=r"did you mean 'experiments/ablate_points\.yaml'"):
        load("experiments/ablate_point.yaml")


def test_another_name_drops_the_options_of_the_old_one(experiment: Path) -> None:
    config = load(experiment, ["model.encoder.attention.name=dense"])
    assert config.model.encoder.attention == {"name": "dense"}
    config = load(experiment, ["model.encoder.attention={name: deform, level: 1}"])
    assert config.model.encoder.attention == {"name": "deform", "level": 1}
    config = load(experiment, ["model.encoder.attention.name=ms_deform", "model.encoder.attention.points=8"])
    assert config.model.encoder.attention == {"name": "ms_deform", "points": 8}


def test_another_backbone_drops_the_options_of_the_old_one(experiment: Path) -> None:
    assert load(experiment, ["model.backbone.name=resnet34"]).model.backbone.options == {}
    assert load(experiment, ["model.backbone.strides=[4]"]).model.backbone.options == {"layers": [1, 1, 1, 1]}


def test_options_of_a_backbone_are_merged_at_any_depth(experiment: Path) -> None:
    """As the keys of the schema are, though it does not know them; another name drops what stood beside the old one."""
    key = "model.backbone.options"
    below = ["model.backbone.name=swin_pico", f"{key}={{stage2: {{second: {{name: dat, groups: 2}}}}}}"]
    changed = load(experiment, [*below, f"{key}={{stage2: {{depth: 3}}}}", f"{key}.stage2.second.groups=1"])
    assert changed.model.backbone.options == {"stage2": {"second": {"name": "dat", "groups": 1}, "depth": 3}}
    other = load(experiment, [*below, f"{key}.stage2.second.name=dense"])
    assert other.model.backbone.options == {"stage2": {"second": {"name": "dense"}}}
    assert load(experiment, [*below, f"{key}.stage2={{}}"]).model.backbone.options == {"stage2": {}}


def test_lists_are_replaced_and_an_empty_mapping_clears(experiment: Path) -> None:
    multipliers = "train.optimizer.lr_multipliers"
    config = load(experiment, ["model.backbone.freeze=[]", f"{multipliers}.a.b=0.5", f"{multipliers}.c=2"])
    assert config.model.backbone.freeze == []
    assert config.train.optimizer.lr_multipliers == {"a.b": 0.5, "c": 2.0}
    assert load(experiment, ["model.backbone.options={}"]).model.backbone.options == {}
    assert load(experiment, ["model.encoder.attention={}"]).model.encoder.attention == {"name": "ms_deform"}


def test_interpolation_is_resolved(experiment: Path) -> None:
    assert load(experiment, ["model.ffn=${model.dim}", "model.dim=48"]).model.ffn == 48


BAD = [
    ("train.stpes=3", "unknown key 'train.stpes'; did you mean 'train.steps'?"),
    ("train.lr=3", "unknown key 'train.lr'; did you mean 'train.optimizer.lr'?"),
    ("modle.dim=3", "unknown key 'modle'; did you mean 'model'?"),
    ("train.steps=abc", "train.steps = 'abc': expected int | null"),
    ("train.steps=1e5", "train.steps = 100000.0: expected int"),
    ("train.steps=true", "train.steps = True: expected int"),
    ("train.steps=0", "train.steps = 0: expected a number at least 1"),
    ("train.epochs=3", "exactly one of train.steps and train.epochs, but both are set"),
    ("train.steps=null", "exactly one of train.steps and train.epochs, but neither is set"),
    ("train.parallel=fsdp", "unknown train.parallel 'fsdp'; did you mean 'fsdp2'? (allowed: ddp, fsdp2)"),
    ("train={parallel: fsdp2, compile: true}", "train.parallel = 'fsdp2': does not go with train.compile"),
    ("train={parallel: fsdp2, channels_last: true}", "'fsdp2': does not go with train.channels_last"),
    ("train={parallel: fsdp2, optimizer: {name: sgd}}", "expected train.optimizer.name = 'adamw', but it is 'sgd'"),
    ("train=4", "train = 4: expected keys and values"),
    ("train.compile=on", "train.compile = 'on': expected bool"),
    ("jobs=0", "jobs = 0: expected a number at least 1"),
    ("seed=[1]", "seed = [1]: expected int"),
    ("device=gpu", "unknown device 'gpu'; did you mean 'cpu'? (allowed: auto, cpu, cuda)"),
    ("train.precision=fp16", "unknown train.precision 'fp16'"),
    ("train.schedule.name=cosin", "unknown train.schedule.name 'cosin'; did you mean 'cosine'?"),
    ("launcher=slrm", "unknown launcher 'slrm'"),
    ("model.neck.position=deform_detr", "did you mean 'deformable_detr'?"),
    ("model.neck.norm=batch", "(allowed: group, none)"),
    ("model.head.boxes=rel", "(allowed: absolute, relative)"),
    ("model.head.select=all", "(allowed: class_agnostic, max_class)"),
    ("model.loss.classification=ce", "(allowed: cross_entropy, focal)"),
    ("model.dropout=1.0", "model.dropout = 1.0: expected a number at least 0 and less than 1"),
    ("model.backbone.strides=4,8", "model.backbone.strides = '4,8': expected list of int"),
    ("model.backbone.strides=[4, 0]", "model.backbone.strides = 0: expected a number at least 1"),
    ("model.encoder.attention=dense", "model.encoder.attention = 'dense': expected keys (str) and values (anything)"),
    ("model.encoder.attention.name=null", "model.encoder.attention.name = None: expected str"),
    ("model.preset=detr_r51", "model.preset: unknown preset 'detr_r51'"),
    ("model.ffn=${model.dimm}", "Interpolation key 'model.dimm' not found"),
    ("model.ffn=a${model.dim}", "model.ffn = 'a256': expected int"),
    ("device=${name}", "unknown device 'small' (allowed: auto, cpu, cuda)"),
    ("model.encoder.attention=${model.decoder.attention}", "expected keys (str) and values (anything)"),
    (f"train.optimizer.lr=1{'0' * 400}", "0: expected float"),
    ("train.optimizer.lr=.nan", "train.optimizer.lr = nan: expected a number more than 0"),
    ("train.optimizer.lr=0", "train.optimizer.lr = 0.0: expected a number more than 0"),
    ("name=a/b", "name = 'a/b': expected the name of a folder"),
    ("processes=3", "data.batch_size = 2: expected a multiple of processes = 3"),
    ("data.dataset.noise=.inf", "data.dataset.noise = inf: expected a finite number"),
    ("data.dataset.sizes=[6, .nan]", "data.dataset.sizes = nan: expected a finite number"),
    ("model.head.box_size_bias=.nan", "model.head.box_size_bias = nan: expected a finite number"),
    ("train.optimizer.lr_multipliers={a: .inf}", "lr_multipliers.a = inf: expected a number at least 0"),
    ("train.optimizer.lr_multipliers.backbone=x", "train.optimizer.lr_multipliers.backbone = 'x': expected float"),
    ("model.encoder.attention={1: 2}", "{1: 2}: expected keys (str) and values (anything)"),
    ("model.backbone.strides=[]", "model.backbone.strides = []: expected at least one number"),
    ("base=foo.yaml", "base: only a file can name the files that it builds on"),
    ("steps", "expected key=value"),
    ("train.steps=[1", "train.steps:1: not valid YAML"),
]


@pytest.mark.parametrize(("override", "message"), BAD)
def test_bad_overrides_are_refused_in_one_line(experiment: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(experiment, [override])
    assert message in str(caught.value)
    assert str(caught.value).startswith("command line")
    assert "\n" not in str(caught.value)


def test_mistakes_in_a_base_name_that_file(tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text("model: {dropout: 1.5}\ntrain: {steps: 5}\n")
    (tmp_path / "top.yaml").write_text("base: low.yaml\nname: top\n")
    with pytest.raises(UserError, match=r"low\.yaml: model\.dropout = 1\.5"):
        load(tmp_path / "top.yaml")
    assert load(tmp_path / "top.yaml", ["model.dropout=0.5"]).model.dropout == 0.5


@pytest.mark.parametrize(
    ("low", "top", "overrides", "source"),
    [
        ("data: {batch_size: 4}", "processes: 3", [], "top.yaml: "),
        ("processes: 3", "data: {batch_size: 4}", [], "top.yaml: "),
        ("processes: 3\ndata: {batch_size: 4}", "seed: 1", [], "low.yaml: "),
        ("data: {batch_size: 4}", "seed: 1", ["processes=3", "train.clip=1"], "command line: "),
        ("train: {epochs: 2}", "train: {clip: 1}", [], "low.yaml: "),
        ("train: {optimizer: {name: sgd}}", "train: {parallel: fsdp2}", ["train.clip=1"], "top.yaml: "),
        ("train: {parallel: fsdp2}", "train: {channels_last: true}", ["train.clip=1"], "top.yaml: "),
        ("slurm: {time: 1}", "slurm: {signal_seconds: 60}", ["slurm.time=1"], "command line: "),
        ("slurm: {nodes: 2}", "slurm: {tasks_per_node: 2}", ["slurm.time=9"], "top.yaml: "),
        ("slurm: {nodes: 2}", "processes: 3\ndata: {batch_size: 3}", ["slurm.time=9"], "top.yaml: "),
    ],
)
def test_keys_that_do_not_go_together_name_the_place_of_the_last(
    tmp_path: Path, low: str, top: str, overrides: list[str], source: str
) -> None:
    (tmp_path / "bottom.yaml").write_text("train: {steps: 5}\ndata: {batch_size: 2}\nslurm: {parallelism: 2}\n")
    (tmp_path / "low.yaml").write_text(f"base: bottom.yaml\n{low}\n")
    (tmp_path / "top.yaml").write_text(f"base: low.yaml\nname: top\n{top}\n")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "top.yaml", overrides)
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(source)


def test_a_name_is_needed(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("train: {steps: 5}\n")
    with pytest.raises(UserError, match="the key 'name' is missing"):
        load(tmp_path / "x.yaml")


def test_a_saved_config_loads_as_it_was(experiment: Path, tmp_path: Path) -> None:
    config = load(experiment, ["train.optimizer.lr=1e-5", "description='on'", "model.backbone.freeze=['010']"])
    save(config, tmp_path / "saved" / "config.yaml")
    again = load(tmp_path / "saved" / "config.yaml")
    assert again == config
    assert digest(again) == digest(config)


def test_the_digest_leaves_out_what_does_not_shape_a_result(experiment: Path) -> None:
    config = load(experiment)
    same = replace(config, name="b", description="c", seed=3, output="d", jobs=4)
    assert digest(same) == digest(config)
    assert len(digest(config)) == 8
    assert digest(replace(config, threads=2)) != digest(config)
    assert digest(load(experiment, ["model.encoder.attention.points=8"])) != digest(config)


def test_later_grids_replace_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text("name: x\ntrain: {steps: 5}\nsweep: {grid: {model.dim: [8, 16]}, seeds: [0]}\n")
    (tmp_path / "top.yaml").write_text("base: low.yaml\nsweep: {grid: {model.ffn: [8]}}\n")
    assert load(tmp_path / "top.yaml").sweep.grid == {"model.ffn": [8]}
    assert load(tmp_path / "top.yaml").sweep.seeds == [0]
    assert load(tmp_path / "top.yaml", ["sweep.grid={}"]).sweep.grid == {}
    config = load(tmp_path / "top.yaml", ["sweep.grid.model.encoder.layers=[1, 2]"])
    assert config.sweep.grid == {"model.encoder.layers": [1, 2]}


def test_changes_come_last(experiment: Path) -> None:
    config = Experiment(experiment, ["model.dim=64"]).config({"model.dim": 32, "seed": 4})
    assert (config.model.dim, config.seed) == (32, 4)


def test_model_config_takes_nested_and_dotted_keys() -> None:
    config = presets.detector_config(None, {"dim": 64, "encoder": {"layers": 2}, "encoder.attention.name": "dense"})
    assert (config.dim, config.encoder.layers, config.encoder.attention) == (64, 2, {"name": "dense"})
    with pytest.raises(UserError, match="unknown key 'dimm'; did you mean 'dim'"):
        presets.detector_config(None, {"dimm": 64})
    with pytest.raises(UserError, match="unknown preset 'detr'"):
        presets.detector_config("detr", {})
