"""`bench models` on tiny models: implementations with the same weights are compared before anything is timed."""

from dataclasses import replace

import pytest
import torch
from support.fresh import passes_in_subprocess

from attnzoo import ops
from attnzoo.attention.dat_bias import TableBias
from attnzoo.bench import tables
from attnzoo.bench.models import benchmark, detectors
from attnzoo.bench.models.classifiers import CLASSIFICATION, PYTORCH, PyTorchAttention
from attnzoo.bench.models.detectors import DETECTION

CPU = torch.device("cpu")
SMALL = {"seconds": 0, "tiny": True, "forward": (1, 32, 64), "training": (2, 32, 32)}

pytest.importorskip("transformers")


@pytest.mark.parametrize("name", benchmark.TASKS)
def test_losses_and_gradients_agree(name):
    task = benchmark.TASKS[name]
    models, missing = task.build_models(name, True, CPU)
    assert missing is None
    images, targets = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)), task.make_targets(2, CPU)
    outputs = {side: benchmark._train_outputs(model, images, targets) for side, model in models.items()}
    error, reason = benchmark.compare_outputs(outputs)
    assert reason is None
    assert error < 1e-5
    trained = outputs["attnzoo"]["number of trained parameters"]
    parameters = sum(p.numel() for p in models["attnzoo"].model.parameters())
    assert 0 < trained < parameters if task is DETECTION else trained == parameters  # a detector's stem is frozen


@pytest.mark.slow
def test_forward_pass_and_training_step_of_both_are_timed(request):
    # After fake tensors, torch has threads for gradients, which forked processes lack: no peak memory then.
    if passes_in_subprocess(request):
        return
    record = benchmark.run(CPU, ["deformable_detr_r50"], **SMALL)
    assert [row["workload"] for row in record["rows"]] == ["forward, 1 x 32x64", "training step, 2 x 32x32"]
    for row in record["rows"]:
        assert row["reason"] is None
        assert row["error"] < 1e-5
        assert {side: len(entry["seconds"]) for side, entry in row["implementations"].items()} == {
            "attnzoo": 5, "transformers": 5,
        }  # fmt: skip
        assert all(entry["peak_bytes"] > 0 for entry in row["implementations"].values())
    assert benchmark.failures(record) == []
    assert len(tables.models_tables(record)[0].rows) == 4


def test_training_step_starts_and_ends_without_gradients():
    """Otherwise the peak memory would lack the gradients that the step began with."""
    models, _ = DETECTION.build_models("detr_r50", True, CPU)
    ours = models["attnzoo"]
    images = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    before = [p.detach().clone() for p in ours.model.parameters() if p.requires_grad]
    benchmark.make_train_step(ours, images, DETECTION.make_targets(2, CPU))()
    after = [p for p in ours.model.parameters() if p.requires_grad]
    assert all(p.grad is None for p in after)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_different_weights_are_a_mismatch_and_nothing_is_timed(monkeypatch):
    build_models = detectors.build_models

    def build_changed(*arguments):
        models, missing = build_models(*arguments)
        with torch.no_grad():
            models["transformers"].model.class_embed[0].bias += 0.1
        return models, missing

    monkeypatch.setitem(benchmark.TASKS, "deformable_detr_r50", replace(DETECTION, build_models=build_changed))
    record = benchmark.run(CPU, ["deformable_detr_r50"], **SMALL)
    assert len(benchmark.failures(record)) == 2
    assert all(row["implementations"] == {} for row in record["rows"])
    (table,) = tables.models_tables(record)
    assert "mismatch: logits of transformers" in table.rows[0][3]


def test_only_attnzoo_uses_the_operators(monkeypatch):
    models, _ = CLASSIFICATION.build_models("dat_tiny", True, CPU)
    images = torch.randn(1, 3, 64, 64)
    assert any(isinstance(module, PyTorchAttention) for module in models[PYTORCH].model.modules())

    def reject(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(ops, "deform_kv_attn", reject)
    monkeypatch.setattr(ops, "ms_deform_attn", reject)
    models[PYTORCH].predict(images)
    with pytest.raises(NotImplementedError):
        models["attnzoo"].predict(images)


def test_dat_without_its_bias_is_a_mismatch(monkeypatch):
    monkeypatch.setattr(TableBias, "bias_matrix", lambda self, positions: torch.zeros(()))
    record = benchmark.run(CPU, ["dat_tiny"], seconds=0, tiny=True, forward=(1, 64, 64), training=(1, 64, 64))
    assert len(benchmark.failures(record)) == 2


@pytest.mark.parametrize(("version", "reason"), [(None, "is missing"), ("5.1", "5.1 names its tensors differently")])
def test_without_the_required_transformers_only_attnzoo_is_timed(monkeypatch, version, reason):
    monkeypatch.setattr(detectors, "version", lambda _: version)
    record = benchmark.run(CPU, ["detr_r50"], **SMALL)
    for row in record["rows"]:
        assert reason in row["reason"]
        assert list(row["implementations"]) == ["attnzoo"]
    assert reason in tables.models_tables(record)[0].markdown()
    assert benchmark.failures(record) == []
