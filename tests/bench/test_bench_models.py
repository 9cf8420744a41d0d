"""`bench models` on tiny models: the same weights, compared before anything is timed."""

import json
from dataclasses import replace

import pytest
import torch
from support.fresh import passed_on_its_own

from attnzoo import __main__ as attnzoo_main
from attnzoo import ops
from attnzoo.attention.dat_bias import TableBias
from attnzoo.bench import tables
from attnzoo.bench.pairs import compare, detectors
from attnzoo.bench.pairs.classifiers import CLASSIFIERS, PLAIN, PlainAttention
from attnzoo.bench.pairs.detectors import DETECTORS

CPU = torch.device("cpu")
SMALL = {"seconds": 0, "tiny": True, "forward": (1, 32, 64), "training": (2, 32, 32)}

pytest.importorskip("transformers")


@pytest.mark.parametrize("name", compare.MODELS)
def test_losses_and_gradients_agree(name):
    kind = compare.MODELS[name]
    found, missing = kind.entrants(name, True, CPU)
    assert missing is None
    images, targets = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)), kind.targets(2, CPU)
    outputs = {side: compare._learn(entrant, images, targets) for side, entrant in found.items()}
    error, reason = compare.compare(outputs)
    assert reason is None
    assert error < 1e-5
    trained = outputs["attnzoo"]["number of trained parameters"]
    parameters = sum(p.numel() for p in found["attnzoo"].model.parameters())
    assert 0 < trained < parameters if kind is DETECTORS else trained == parameters  # a detector's stem is frozen


def test_both_are_timed_on_both_works(request):
    # Where fake tensors were before, torch has threads for gradients, which forked processes lack: no peak then.
    if passed_on_its_own(request):
        return
    record = compare.run(CPU, ["deformable_detr_r50"], **SMALL)
    assert [row["work"] for row in record["rows"]] == ["forward, 1 x 32x64", "training step, 2 x 32x32"]
    for row in record["rows"]:
        assert row["reason"] is None
        assert row["error"] < 1e-5
        assert {side: len(entry["seconds"]) for side, entry in row["implementations"].items()} == {
            "attnzoo": 5, "transformers": 5,
        }  # fmt: skip
        assert all(entry["peak_bytes"] > 0 for entry in row["implementations"].values())
    assert compare.faults(record) == []
    assert len(tables.whole_models(record)[0].rows) == 4


def test_a_step_begins_and_ends_without_gradients():
    """Else a peak would be short of those that a step begins with."""
    found, _ = DETECTORS.entrants("detr_r50", True, CPU)
    ours = found["attnzoo"]
    images, targets = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(0)), DETECTORS.targets(2, CPU)
    before = [p.detach().clone() for p in ours.model.parameters() if p.requires_grad]
    compare.step(ours, images, targets)()
    after = [p for p in ours.model.parameters() if p.requires_grad]
    assert all(p.grad is None for p in after)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_different_weights_are_a_disagreement_and_nothing_is_timed(monkeypatch):
    entrants = detectors.entrants

    def changed(*arguments):
        found, missing = entrants(*arguments)
        with torch.no_grad():
            found["transformers"].model.class_embed[0].bias += 0.1
        return found, missing

    monkeypatch.setitem(compare.MODELS, "deformable_detr_r50", replace(DETECTORS, entrants=changed))
    record = compare.run(CPU, ["deformable_detr_r50"], **SMALL)
    assert len(compare.faults(record)) == 2
    assert all(row["implementations"] == {} for row in record["rows"])
    (table,) = tables.whole_models(record)
    assert "disagrees: logits of transformers" in table.rows[0][3]


def test_only_ours_uses_the_operators(monkeypatch):
    found, _ = CLASSIFIERS.entrants("dat_tiny", True, CPU)
    images = torch.randn(1, 3, 64, 64)
    assert any(isinstance(module, PlainAttention) for module in found[PLAIN].model.modules())

    def refuse(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(ops, "deform_kv_attention", refuse)
    monkeypatch.setattr(ops, "ms_deform_attn", refuse)
    found[PLAIN].predict(images)
    with pytest.raises(NotImplementedError):
        found["attnzoo"].predict(images)


def test_without_its_bias_dat_computes_something_else(monkeypatch):
    monkeypatch.setattr(TableBias, "bias_matrix", lambda self, positions: torch.zeros(()))
    record = compare.run(CPU, ["dat_tiny"], seconds=0, tiny=True, forward=(1, 64, 64), training=(1, 64, 64))
    assert len(compare.faults(record)) == 2


@pytest.mark.parametrize(("version", "said"), [(None, "is missing"), ("5.1", "5.1 names its tensors differently")])
def test_without_the_right_transformers_ours_is_timed_alone(monkeypatch, version, said):
    monkeypatch.setattr(detectors, "version", lambda _: version)
    record = compare.run(CPU, ["detr_r50"], **SMALL)
    for row in record["rows"]:
        assert said in row["reason"]
        assert list(row["implementations"]) == ["attnzoo"]
    assert said in tables.whole_models(record)[0].markdown()
    assert compare.faults(record) == []


def test_from_the_command_line(capsys, tmp_path):
    raw = tmp_path / "models.json"
    sizes = ["--tiny", "--forward", "1x32x32", "--training", "1x32x32", "--seconds", "0", "--json", str(raw)]
    assert attnzoo_main.main(["bench", "models", "--models", "detr_r50", *sizes]) == 0
    assert "training step, 1 x 32x32" in capsys.readouterr().out
    assert len(json.loads(raw.read_text())["rows"]) == 2


def test_an_unknown_model_is_one_line(capsys):
    assert attnzoo_main.main(["bench", "models", "--models", "detr_r5"]) == 2
    assert "unknown model 'detr_r5'; did you mean 'detr_r50'?" in capsys.readouterr().err
