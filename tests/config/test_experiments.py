"""The experiment files that come with the package: each builds, and published recipes have the published numbers."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from attnzoo import models
from attnzoo.config.files import PACKAGED
from attnzoo.config.load import Experiment, load
from attnzoo.engine.optim import check_parameter_patterns
from attnzoo.sweep.check_runs import check_runs
from attnzoo.sweep.expand import expand

FILES = sorted(PACKAGED.glob("*.yaml"))
BUILT_IN = [path for path in FILES if not path.stem.endswith(("_coco", "_imagenet"))]


@pytest.mark.parametrize("path", BUILT_IN, ids=lambda path: path.stem)
def test_every_run_can_be_built(path: Path) -> None:
    experiment = Experiment(path)
    runs = check_runs(experiment, expand(experiment))
    assert all(run.config.name == path.stem for run in runs)
    assert all(len(run.name) < 200 for run in runs)  # of a folder


@pytest.mark.parametrize(
    ("name", "lr", "warmup_epochs", "first", "last", "clip", "drop_path"),
    [
        ("swin_imagenet", 1e-3, 20, 1e-6, 1e-5, 5.0, 0.2),
        ("dat_imagenet", 1e-3, 20, 1e-6, 1e-5, 5.0, 0.2),
        ("dat_base_imagenet", 8e-4, 50, 1e-6, 1e-5, 1.0, 0.5),
    ],
)
def test_published_recipes(
    name: str, lr: float, warmup_epochs: int, first: float, last: float, clip: float, drop_path: float
) -> None:
    config: Any = load(f"experiments/{name}.yaml")
    train, schedule = config.train, config.train.schedule
    assert (train.epochs, config.data.batch_size, train.optimizer.lr, train.clip) == (300, 1024, lr, clip)
    steps_per_epoch = 1_281_167 // 1024
    assert round(schedule.warmup * 300 * steps_per_epoch) == warmup_epochs * steps_per_epoch
    assert schedule.warmup_prefix == (name == "swin_imagenet")
    assert (schedule.warmup_start_factor * lr, schedule.min_lr_ratio * lr) == pytest.approx((first, last))
    assert (train.optimizer.weight_decay, train.optimizer.decay_1d) == (0.05, False)
    assert (config.data.mixup, config.data.cutmix, config.data.mix_switch) == (0.8, 1.0, 0.5)
    assert (config.model.label_smoothing, config.model.drop_path) == (0.1, drop_path)


def test_published_detr_recipe() -> None:
    """facebookresearch/detr, main.py: its defaults, on 8 GPUs."""
    config: Any = load("experiments/detr_coco.yaml")
    train = config.train
    assert (config.data.batch_size, train.epochs, train.clip, train.accumulate) == (16, 300, 0.1, 1)
    assert (train.optimizer.name, train.optimizer.lr, train.optimizer.weight_decay) == ("adamw", 1e-4, 1e-4)
    assert train.optimizer.lr_multipliers == {"backbone": 0.1}
    steps_per_epoch = 118_287 // 16
    assert [round(m * 300 * steps_per_epoch) for m in train.schedule.milestones] == [200 * steps_per_epoch]
    assert (config.model.queries, config.model.loss.classification, config.model.loss.no_object_weight) == (
        100,
        "cross_entropy",
        0.1,
    )


def test_detr_dc5_plus_is_dc5_with_focal_loss_and_300_queries_for_50_epochs() -> None:
    config: Any = load("experiments/detr_dc5_plus_coco.yaml")
    plain: Any = load("experiments/detr_coco.yaml", ["model.preset=detr_r50_dc5"])
    assert (config.train.epochs, config.model.queries, config.model.loss.classification) == (50, 300, "focal")
    assert config.model.encoder == plain.model.encoder
    assert config.model.decoder == plain.model.decoder
    assert config.model.backbone == plain.model.backbone


def test_published_coco_recipe() -> None:
    config: Any = load("experiments/deformable_detr_coco.yaml")
    train, schedule = config.train, config.train.schedule
    assert (train.epochs, config.data.batch_size, train.clip) == (50, 32, 0.1)
    assert (train.optimizer.lr, train.optimizer.weight_decay) == (2e-4, 1e-4)
    assert (schedule.name, schedule.milestones, schedule.gamma) == ("step", [40 / 50], 0.1)
    assert train.optimizer.lr_multipliers == dict.fromkeys(("backbone", "sampling_offsets", "reference_points"), 0.1)
    assert config.data.dataset["name"] == "coco"
    assert train.eval_every == 118_287 // config.data.batch_size  # after every epoch of train2017


def test_recipes_fit_the_documented_models() -> None:
    page = (Path(__file__).parents[2] / "docs" / "classification.md").read_text()
    rows = re.findall(r"^\| `(\w+_imagenet\.yaml)` \| (.*?) \|", page, re.MULTILINE)
    assert len(rows) == 4
    for file, models_of_it in rows:
        for preset in re.findall(r"\b(?:swin|dat)_\w+", models_of_it.split(", from")[0]):
            config: Any = load(f"experiments/{file}", [f"model.preset={preset}", "model.weights=null"])
            with torch.device("meta"):
                names = [name for name, _ in models.build(config.model, 1000).named_parameters()]
            check_parameter_patterns(config.train.optimizer, names)


def test_published_fine_tuning() -> None:
    config: Any = load("experiments/dat_base_384_imagenet.yaml")
    train, schedule = config.train, config.train.schedule
    assert (train.epochs, config.data.batch_size, train.optimizer.lr) == (30, 512, 2e-6)
    assert (train.optimizer.weight_decay, train.optimizer.decay_1d, train.clip) == (1e-8, False, 5.0)
    assert (schedule.warmup, schedule.min_lr_ratio * train.optimizer.lr) == (0, pytest.approx(1e-7))
    augment = config.data.augment
    assert (augment["size"], augment.get("crop_pct", 0.875), augment["crop_mode"]) == (384, 0.875, "squash")
    assert (config.model.stage1.second["window"], config.model.stage1.second["shift"]) == (12, 6)
    assert config.model.drop_path == 0.5


def test_docs_list_the_number_of_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .*? \| (\d+) \|", page, re.MULTILINE)
    assert len(rows) == 7
    assert {name: len(expand(Experiment(f"experiments/{name}.yaml"))) for name, _ in rows} == {
        name: int(runs) for name, runs in rows
    }


def test_cross_slots_has_every_attention_in_every_slot() -> None:
    from attnzoo import attention
    from attnzoo.geometry import Role

    experiment = Experiment("experiments/cross_slots.yaml")
    configs: list[Any] = [run.config for run in check_runs(experiment, expand(experiment))]
    found = {
        Role.ENCODER: {config.model.encoder.attention["name"] for config in configs},
        Role.DECODER: {config.model.decoder.attention["name"] for config in configs},
        Role.STAGE: {config.model.backbone.options["stage3"]["second"]["name"] for config in configs},
    }
    for role, names in found.items():
        able = {name for name in attention.names() if role in attention.ATTENTIONS.get(name).roles}
        assert names == able, role
