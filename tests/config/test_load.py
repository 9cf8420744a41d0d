import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.load import Change, Experiment, digest, load, load_saved, save
from attnzoo.errors import UserError
from attnzoo.models import presets

EXPERIMENT = """
name: small
model:
  encoder: {attention: {name: ms_deform, points: 4}}
  backbone: {name: resnet18, options: {layers: [1, 1, 1, 1]}}
train: {steps: 5}
"""


def merged(path: Path, overrides: Sequence[str]) -> ExperimentConfig:
    """The config of the file and the overrides, without defaults of options."""
    return Experiment(path, overrides).config()


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


def test_base_that_is_not_next_to_the_file_comes_from_the_package(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: base/detr_scenes.yaml\nname: mine\n")
    assert load(tmp_path / "mine.yaml").model.head.two_stage


def test_circular_bases_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(UserError, match=r"circular base: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        load(tmp_path / "a.yaml")


def test_missing_base_suggests_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: base/detr_scene.yaml\n")
    with pytest.raises(UserError, match=r"no such file 'base/detr_scene.yaml'; did you mean 'base/detr_scenes.yaml'"):
        load(tmp_path / "a.yaml")


def test_packaged_experiments_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("experiments/ablate_points.yaml").name == "ablate_points"
    with pytest.raises(UserError, match=r"did you mean 'experiments/ablate_points\.yaml'"):
        load("experiments/ablate_point.yaml")


def test_changing_the_name_drops_the_old_options(experiment: Path) -> None:
    config = merged(experiment, ["model.encoder.attention.name=dense"])
    assert config.model.encoder.attention == {"name": "dense"}
    config = merged(experiment, ["model.encoder.attention={name: deform, level: 1}"])
    assert config.model.encoder.attention == {"name": "deform", "level": 1}
    config = merged(experiment, ["model.encoder.attention.name=ms_deform", "model.encoder.attention.points=8"])
    assert config.model.encoder.attention == {"name": "ms_deform", "points": 8}


def test_changing_the_backbone_drops_the_old_options(experiment: Path) -> None:
    assert merged(experiment, ["model.backbone.name=resnet34"]).model.backbone.options == {}
    assert merged(experiment, ["model.backbone.strides=[4]"]).model.backbone.options == {"layers": [1, 1, 1, 1]}


def test_options_of_a_backbone_are_merged_at_any_depth(experiment: Path) -> None:
    """Like keys of the schema; another name drops the options of the old one."""
    key = "model.backbone.options"
    below = ["model.backbone.name=swin_pico", f"{key}={{stage2: {{second: {{name: dat, groups: 2}}}}}}"]
    changed = merged(experiment, [*below, f"{key}={{stage2: {{depth: 3}}}}", f"{key}.stage2.second.groups=1"])
    assert changed.model.backbone.options == {"stage2": {"second": {"name": "dat", "groups": 1}, "depth": 3}}
    other = merged(experiment, [*below, f"{key}.stage2.second.name=dense"])
    assert other.model.backbone.options == {"stage2": {"second": {"name": "dense"}}}
    assert merged(experiment, [*below, f"{key}.stage2={{}}"]).model.backbone.options == {"stage2": {}}


def test_lists_are_replaced_and_an_empty_mapping_clears(experiment: Path) -> None:
    multipliers = "train.optimizer.lr_multipliers"
    config = merged(experiment, ["model.backbone.freeze=[]", f"{multipliers}.a.b=0.5", f"{multipliers}.c=2"])
    assert config.model.backbone.freeze == []
    assert config.train.optimizer.lr_multipliers == {"a.b": 0.5, "c": 2.0}
    assert merged(experiment, ["model.backbone.options={}"]).model.backbone.options == {}
    assert merged(experiment, ["model.encoder.attention={}"]).model.encoder.attention == {"name": "ms_deform"}


def test_interpolation_is_resolved(experiment: Path) -> None:
    assert load(experiment, ["model.ffn=${model.dim}", "model.dim=48"]).model.ffn == 48


BAD = [
    ("train.stpes=3", "unknown key 'train.stpes'; did you mean 'train.steps'?"),
    ("train.lr=3", "unknown key 'train.lr'; did you mean 'train.optimizer.lr'?"),
    ("modle.dim=3", "unknown key 'modle'; did you mean 'model'?"),
    ("train.steps=abc", "train.steps = 'abc': expected int | null"),
    ("train.steps=1e5", "train.steps = 100000.0: expected int"),
    ("train.steps=true", "train.steps = true: expected int"),
    ("train.steps=0", "train.steps = 0: expected a number at least 1"),
    ("train.epochs=3", "exactly one of train.steps and train.epochs, but both are set"),
    ("train.steps=null", "exactly one of train.steps and train.epochs, but neither is set"),
    ("train.parallel=fsdp", "unknown train.parallel 'fsdp'; did you mean 'fsdp2'? (allowed: ddp, fsdp2)"),
    ("train={parallel: fsdp2, compile: true}", "train.parallel = 'fsdp2': does not support train.compile"),
    ("train={parallel: fsdp2, cuda_graphs: true}", "does not support train.cuda_graphs"),
    ("train={parallel: fsdp2, channels_last: true}", "'fsdp2': does not support train.channels_last"),
    ("train={parallel: fsdp2, optimizer: {name: sgd}}", "expected train.optimizer.name = 'adamw', but it is 'sgd'"),
    ("train=4", "train = 4: expected a mapping"),
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
    ("model.encoder.attention=dense", "model.encoder.attention = 'dense': expected a mapping"),
    ("model.encoder.attention.name=null", "model.encoder.attention.name = null: expected str"),
    ("model.preset=detr_r51", "model.preset: unknown preset 'detr_r51'"),
    ("model.ffn=${model.dimm}", "Interpolation key 'model.dimm' not found"),
    ("model.ffn=a${model.dim}", "model.ffn = 'a256': expected int"),
    ("device=${name}", "unknown device 'small' (allowed: auto, cpu, cuda)"),
    ("model.encoder.attention=${model.decoder.attention}", "expected a mapping"),
    (f"train.optimizer.lr=1{'0' * 400}", "an integer of more than 100 digits"),
    ("train.optimizer.lr=.nan", "train.optimizer.lr = .nan: expected a number more than 0"),
    ("train.optimizer.lr=0", "train.optimizer.lr = 0.0: expected a number more than 0"),
    ("name=a/b", "name = 'a/b': expected the name of a folder"),
    ("processes=3", "data.batch_size = 2: expected a multiple of processes = 3"),
    ("data.dataset.noise=.inf", "data.dataset.noise = .inf: expected a finite number"),
    ("data.dataset.sizes=[6, .nan]", "data.dataset.sizes = .nan: expected a finite number"),
    ("model.head.box_size_bias=.nan", "model.head.box_size_bias = .nan: expected a finite number"),
    ("train.optimizer.lr_multipliers={a: .inf}", "lr_multipliers.a = .inf: expected a number at least 0"),
    ("train.optimizer.lr_multipliers.backbone=x", "train.optimizer.lr_multipliers.backbone = 'x': expected float"),
    ("model.encoder.attention={1: 2}", "{1: 2}: expected a mapping"),
    ("model.backbone.strides=[]", "model.backbone.strides = []: expected at least one number"),
    ("task=nosuch", "command line: task: unknown task 'nosuch' (allowed: classification, detection, probe)"),
    (
        "data.dataset={name: digit_scenes, sizes: {a: null, b: [x, true, '1']}}",
        "= {a: null, b: [x, true, '1']}: expected",
    ),
    ("base=foo.yaml", "base: cannot be set on the command line"),
    ("steps", "expected key=value"),
    ("train.steps=[1", "train.steps:1: not valid YAML"),
]


def test_cuda_graphs_need_a_gpu(experiment: Path) -> None:
    with pytest.raises(UserError, match=r"train\.cuda_graphs = true: needs a GPU, but device = cpu"):
        load(experiment, ["device=cpu", "train.cuda_graphs=true"])


@pytest.mark.parametrize(("override", "message"), BAD)
def test_errors_in_overrides_are_one_line(experiment: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(experiment, [override])
    assert message in str(caught.value)
    assert str(caught.value).startswith("command line")
    assert "\n" not in str(caught.value)


def test_error_in_a_base_names_that_file(tmp_path: Path) -> None:
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
def test_conflicting_keys_name_the_source_of_the_last_one(
    tmp_path: Path, low: str, top: str, overrides: list[str], source: str
) -> None:
    (tmp_path / "bottom.yaml").write_text("train: {steps: 5}\ndata: {batch_size: 2}\nslurm: {parallelism: 2}\n")
    (tmp_path / "low.yaml").write_text(f"base: bottom.yaml\n{low}\n")
    (tmp_path / "top.yaml").write_text(f"base: low.yaml\nname: top\n{top}\n")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "top.yaml", overrides)
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(source)


def test_experiment_needs_a_name(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("train: {steps: 5}\n")
    with pytest.raises(UserError, match=r"the key 'name' \(of the experiment\) is missing"):
        load(tmp_path / "x.yaml")


def test_saved_config_round_trips(experiment: Path, tmp_path: Path) -> None:
    config = load(experiment, ["train.optimizer.lr=1e-5", "description='on'", "model.backbone.freeze=['010']"])
    save(config, tmp_path / "saved" / "config.yaml")
    for read in (load, load_saved):
        again = read(tmp_path / "saved" / "config.yaml")
        assert again == config
        assert digest(again) == digest(config)


SAVED = """
import sys
from attnzoo.config.load import load_saved
print(load_saved(sys.argv[1]).plugins)
assert "torch" not in sys.modules
"""


def test_saved_config_needs_neither_torch_nor_its_plugins(experiment: Path, tmp_path: Path) -> None:
    config = Experiment(experiment, ["plugins=[gone.py]", "model.encoder.attention={name: mine, size: 3}"]).config()
    save(config, tmp_path / "config.yaml")
    read = subprocess.run([sys.executable, "-c", SAVED, tmp_path / "config.yaml"], capture_output=True, text=True)
    assert (read.stdout, read.stderr) == ("['gone.py']\n", "")


def test_options_are_written_out(experiment: Path) -> None:
    config = load(experiment)
    arms = {"offsets": "learned", "sampling": "bilinear", "weights": "learned"}
    assert config.model.decoder.attention == {"name": "ms_deform", "points": 4} | arms
    assert config.data.dataset["train_images"] == 8000


def test_digest_ignores_keys_that_do_not_affect_results(experiment: Path) -> None:
    config = load(experiment)
    same = replace(config, name="b", description="c", seed=3, output="d", jobs=4)
    assert digest(same) == digest(config)
    assert digest(load(experiment, ["train.pictures=false"])) == digest(config)
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


def test_changes_override_everything_else(experiment: Path) -> None:
    config = Experiment(experiment, ["model.dim=64"]).config(
        [Change("model.dim", 32, "sweep"), Change("seed", 4, "sweep")]
    )
    assert (config.model.dim, config.seed) == (32, 4)


def test_model_config_accepts_nested_and_dotted_keys() -> None:
    config = presets.detector_config(None, {"dim": 64, "encoder": {"layers": 2}, "encoder.attention.name": "dense"})
    assert (config.dim, config.encoder.layers, config.encoder.attention) == (64, 2, {"name": "dense"})
    with pytest.raises(UserError, match="unknown key 'dimm'; did you mean 'dim'"):
        presets.detector_config(None, {"dimm": 64})
    with pytest.raises(UserError, match="unknown preset 'detr'"):
        presets.detector_config("detr", {})


def test_absolute_base_that_is_missing_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("base: /nowhere/x.yaml\nname: x\n")
    with pytest.raises(UserError, match=r"base: no such file ./nowhere/x\.yaml."):
        load(tmp_path / "x.yaml")
