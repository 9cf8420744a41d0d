"""`attnzoo new` writes files that run: each passes the checks of a dry run; the user's folder stays as it is."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.userdata import class_folders, coco, save_picture, voc, yolo

from attnzoo import models
from attnzoo.__main__ import main
from attnzoo.config.load import Experiment, save
from attnzoo.data.build import build_dataset
from attnzoo.engine.checkpoint import CheckpointManager
from attnzoo.errors import UserError
from attnzoo.sweep.check_runs import check_runs
from attnzoo.sweep.expand import expand
from attnzoo.userdata.convert import convert
from attnzoo.userdata.new import new_experiment
from attnzoo.userdata.read import read_folder


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(root.rglob("*"))}


def checked(path: Path) -> Any:
    """The config of the only run, as a dry run checks it."""
    experiment = Experiment(path)
    (run,) = check_runs(experiment, expand(experiment))
    return run.config


@pytest.mark.parametrize("make", [coco, yolo, voc])
def test_detection(tmp_path: Path, make: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """COCO format with both splits is used in place; the others are converted."""
    root = make(tmp_path / "data")
    before = snapshot(root)
    created = new_experiment("mine", read_folder(root), folder=tmp_path)
    assert (created.data is None) == (make is coco)
    assert snapshot(root) == before
    config = checked(created.path)
    assert config.name == "mine"
    train = build_dataset(config.data, "train")
    assert (len(train), train.class_names, sum(train.num_objects)) == (5, ["ant", "bee"], 6)
    assert len(build_dataset(config.data, "val")) == 2


@pytest.mark.parametrize("splits", [("train", "val"), ()])
def test_classification(tmp_path: Path, splits: tuple[str, ...]) -> None:
    root = class_folders(tmp_path / "data", splits=splits)
    before = snapshot(root)
    created = new_experiment("mine", read_folder(root), folder=tmp_path)
    assert (created.data is None) == bool(splits)
    assert snapshot(root) == before
    config = checked(created.path)
    assert config.task == "classification"
    train, val = (build_dataset(config.data, split) for split in ("train", "val"))
    assert (len(train), len(val)) == ((12, 12) if splits else (10, 2))
    assert train[0][0].shape == (3, 32, 32)


def test_split_is_repeatable_and_keeps_copies_and_fields(tmp_path: Path) -> None:
    root = coco(tmp_path / "data", splits=("train",))
    content = read_folder(root)
    for name in ("a", "b"):
        convert(content, tmp_path / name, 0.4)
    files = [tmp_path / name / "annotations" / "val.json" for name in ("a", "b")]
    assert files[0].read_text() == files[1].read_text()
    made = read_folder(tmp_path / "a")
    assert made.category_ids == (3, 7)
    assert {name: len(split.paths) for name, split in made.splits.items()} == {"train": 3, "val": 2}
    annotations = [a for split in made.splits.values() for a in split.raw["annotations"]]  # type: ignore[index]
    assert all(a["area"] == a["bbox"][2] * a["bbox"][3] / 2 for a in annotations)  # of the original, not of the box
    flat = class_folders(tmp_path / "flat", splits=())
    for i in range(4):  # copies of one image are on one side
        (flat / "ant" / f"copy{i}.png").write_bytes((flat / "ant" / "ant0.png").read_bytes())
    convert(read_folder(flat), tmp_path / "c")
    where = {
        path.parent.parent.name for path in (tmp_path / "c").rglob("*.png") if path.name.startswith(("copy", "ant0"))
    }
    assert len(where) == 1


@pytest.mark.parametrize("name", ["new\nline", "cr\r", "separator\u2028z", "\x1b[31mred", "a: b #c ${x}", "~"])
def test_folders_of_any_name(tmp_path: Path, name: str) -> None:
    """A line break in the name ended the comment on the first line of the file."""
    config = checked(new_experiment("mine", read_folder(coco(tmp_path / name)), folder=tmp_path).path)
    assert config.data.dataset["root"] == str(tmp_path / name)
    assert len(build_dataset(config.data, "val")) == 2


def test_large_images_get_the_published_recipe(tmp_path: Path) -> None:
    root = coco(tmp_path / "data")
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}.json"
        path.write_text(re.sub(r'"width": \d+, "height": \d+', '"width": 640, "height": 480', path.read_text()))
    created = new_experiment("mine", read_folder(root), folder=tmp_path)
    config = checked(created.path)
    assert "  preset: deformable_detr_r50_refine  # random weights" in created.path.read_text()
    assert config.model.head.refine
    assert config.model.queries == 50
    assert (config.data.augment["eval_scale"], config.data.augment["max_size"]) == (800, 1333)
    assert "`attnzoo new --weights` starts better" in created.path.read_text()


def test_small_objects_are_pointed_out(tmp_path: Path) -> None:
    root = coco(tmp_path / "data")
    path = root / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace('"bbox": [4, 6, 10, 12]', '"bbox": [4, 6, 3, 3]'))
    text = new_experiment("mine", read_folder(root), folder=tmp_path).path.read_text()
    assert "17% of boxes are under 8 pixels then, a cell of the finest map: larger images help" in text


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a published detector in a file."""
    path = tmp_path_factory.mktemp("weights") / "detr.pth"
    with torch.device("meta"):
        model = models.create("detr_r50")
    state = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in model.state_dict().items()}
    torch.save({"model": state}, path)
    return path


@pytest.mark.slow
def test_published_weights_name_the_preset(tmp_path: Path, published: Path) -> None:
    created = new_experiment("mine", read_folder(coco(tmp_path / "data")), str(published), folder=tmp_path)
    config = checked(created.path)
    assert "  preset: detr_r50\n" in created.path.read_text()
    assert config.model.weights == str(published)
    assert config.model.queries == 20  # as many as tokens in images of 38 pixels, the smallest scale
    assert config.train.optimizer.lr == 1e-4
    with pytest.raises(
        UserError,
        match="of detr_r50: a model of task: detection, but this data set is for task: classif",
    ):
        new_experiment("other", read_folder(class_folders(tmp_path / "classes")), str(published), folder=tmp_path)
    assert not (tmp_path / "other.yaml").exists()


def test_a_run_gives_its_model_and_half_its_rate(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("base: base/detr_scenes.yaml\nname: x\nmodel: {dim: 32, heads: 2}\n")
    config: Any = Experiment(file).config()
    run = tmp_path / "runs" / "seed=0"
    (run / "checkpoints").mkdir(parents=True)
    save(config, run / "config.yaml")
    model = models.build(config.model, 10)
    CheckpointManager(run / "checkpoints").save({"model": model.state_dict(), "ema": None}, 5)
    created = new_experiment("mine", read_folder(coco(tmp_path / "data")), str(run), folder=tmp_path)
    new = checked(created.path)
    assert (new.model.dim, new.model.queries, new.model.weights) == (
        32,
        10,
        str(run),
    )  # 20, but images of 24 pixels have 10 tokens
    assert new.train.optimizer.lr == config.train.optimizer.lr / 2
    assert new.data.augment["name"] == "photometric"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new", "a/b", "--data", "data"], "NAME = 'a/b': expected letters"),
        (["new", "there", "--data", "data"], "there.yaml: exists already"),
        (["new", "x", "--data", "none"], "none: no such folder"),
        (["new", "x", "--data", "data", "--weights", "none.pth"], "none.pth: no such file"),
        (["new", "x", "--data", "one"], "too few images for a validation split"),
        (["new", "x" * 201, "--data", "data"], "NAME: 201 bytes long: expected at most 200"),
        (["new", "x", "--data", "\udcff"], '\\udcff": not text in UTF-8, which an experiment file cannot name'),
        (["new", "x", "--data", "data", "--weights", "\udcff.pt"], '--weights "\\udcff.pt": not text in UTF-8'),
    ],
)
def test_errors_are_one_line_and_write_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    coco(tmp_path / "data", splits=("train",))
    coco(tmp_path / "\udcff")
    save_picture(tmp_path / "one" / "ant" / "a.png", (9, 9), 0)
    save_picture(tmp_path / "one" / "bee" / "b.png", (9, 9), 1)
    (tmp_path / "there.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert snapshot(tmp_path).keys() == before.keys()
