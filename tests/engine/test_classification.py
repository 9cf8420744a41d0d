"""Training classifiers: resuming, metrics, mixup."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.classification import tiny_classifier
from support.engine import ALONE, check_resume
from torch import Tensor

from attnzoo.config import load as configs
from attnzoo.data.classification import ClassificationBatch
from attnzoo.engine.classification import ClassificationTask, classify, summarize
from attnzoo.errors import ExitCode, UserError
from attnzoo.rundir.folder import RunFolder
from attnzoo.worker.train import train_run


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = tiny_classifier(tmp_path_factory.mktemp("classifier") / "run")
    assert train_run(run.path) == ExitCode.OK
    return run


def test_metrics(uninterrupted: RunFolder) -> None:
    rows = uninterrupted.read_metrics()
    assert {"cost/params", "cost/gflops", "cost/ms"} < rows[0].keys()
    last = rows[-1]
    assert 0 <= last["val/top1"] <= last["val/top5"] <= 1
    assert last["val/loss"] > 0
    training = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in training] == [3, 6, 9, 12]
    assert all(row["speed/images_per_second"] > 0 and row["speed/peak_mib"] > 10 for row in training)
    assert uninterrupted.read_status()["top1"] == last["val/top1"]


def test_resumed_run_repeats_the_uninterrupted_one(uninterrupted: RunFolder, tmp_path: Path) -> None:
    """Mixup, cutmix, stochastic depth and augmentation included."""
    check_resume(tiny_classifier(tmp_path / "run"), uninterrupted, 10)


def test_saved_config_equals_the_config(uninterrupted: RunFolder) -> None:
    config = configs.load(uninterrupted.config)
    assert config.task == "classification"
    assert config.model.stage2.first["name"] == "dat"
    assert configs.digest(config) == configs.digest(configs.load(uninterrupted.path / "experiment.yaml"))


def task(folder: Path, **changes: str) -> ClassificationTask:
    config: Any = configs.load(tiny_classifier(folder, **changes).config)
    return ClassificationTask(config.model, config.data, config.seed, ALONE)


def test_loss_without_mixup_is_smoothed_cross_entropy(tmp_path: Path) -> None:
    plain = task(tmp_path, data__mixup="0", data__cutmix="0")
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    batch = ClassificationBatch(torch.zeros(4, 3, 8, 8), torch.tensor([1, 2, 3, 4]))
    loss = plain.loss(lambda images: logits, batch, 1.0).total
    targets = 0.9 * torch.eye(10)[batch.labels] + 0.1 / 10
    torch.testing.assert_close(loss, -(targets * logits.log_softmax(1)).sum(1).mean())


def test_mixup_is_deterministic_per_step_seed(tmp_path: Path) -> None:
    mixed = task(tmp_path)
    batch = ClassificationBatch(torch.rand(4, 3, 8, 8), torch.tensor([1, 2, 3, 4]))
    seen: list[Tensor] = []

    def forward(images: Tensor) -> Tensor:
        seen.append(images.clone())
        return images.flatten(1)[:, :10]

    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        mixed.loss(forward, ClassificationBatch(batch.images.clone(), batch.labels), 1.0)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], batch.images)


def test_model_with_more_classes_than_the_data_is_evaluated(tmp_path: Path) -> None:
    run = tiny_classifier(tmp_path / "run", model__num_classes="13")
    assert train_run(run.path) == ExitCode.OK
    last = run.read_metrics()[-1]
    assert 0 <= last["val/top1"] <= last["val/top5"] <= 1


def test_classes_that_the_data_does_not_have_are_not_predicted(tmp_path: Path) -> None:
    wide = task(tmp_path, model__num_classes="17")
    labels = torch.tensor([wide.val[i][1] for i in range(len(wide.val))])
    batches = iter(labels.split(4))

    def forward(images: Tensor) -> Tensor:
        logits = torch.nn.functional.one_hot(next(batches), 17).float()
        return logits + 2 * (torch.arange(17) >= 10)

    metrics = wide.evaluate(forward, lambda: None)
    assert metrics["top1"] == metrics["top5"] == 1
    assert metrics["loss"] > 2


def test_mixup_needs_an_even_batch_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.batch_size = 3"):
        task(tmp_path, data__batch_size="3")


def test_top_classes_and_accuracy() -> None:
    logits = torch.tensor([[1.0, 3, 2, 0, 0, 0], [0, 1, 2, 3, 4, 5]])
    batch = ClassificationBatch(torch.zeros(2, 3, 1, 1), torch.tensor([1, 0]))
    results = classify(lambda images: logits, 6, [batch], torch.device("cpu"), lambda: None)
    assert results[0].top[1] == [5, 4, 3, 2, 1]
    assert (summarize(results)["top1"], summarize(results)["top5"]) == (0.5, 0.5)
    (fewer,) = classify(lambda images: logits, 3, [batch], torch.device("cpu"), lambda: None)
    assert fewer.top == [[1, 2, 0], [2, 1, 0]]


def test_keys_of_the_other_task_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("name: x\ntask: classification\ntrain: {steps: 1}\nmodel: {queries: 3}\n")
    with pytest.raises(UserError, match=r"unknown key 'model\.queries'"):
        configs.load(tmp_path / "e.yaml")
    with pytest.raises(UserError, match=r"unknown task 'clasification'.*'classification'"):
        configs.load(tmp_path / "e.yaml", ["task=clasification"])


def test_presets_match_the_task(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("name: x\ntask: classification\ntrain: {steps: 1}\nmodel: {preset: dat_tiny}\n")
    config: Any = configs.load(tmp_path / "e.yaml", ["model.stage3.second.groups=6"])
    assert config.model.stage3.second["groups"] == 6
    assert config.model.downsample == "conv"
    with pytest.raises(UserError, match=r"unknown preset 'detr_r50'"):
        configs.load(tmp_path / "e.yaml", ["model.preset=detr_r50"])
