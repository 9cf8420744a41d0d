"""Training on probes: metrics, chance and ceiling, resuming, pairing, roles, errors."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.engine import ALONE, check_resume
from support.probe import tiny_probe
from torch import Tensor

from attnzoo import attention
from attnzoo.config import load as configs
from attnzoo.data.build import PROBES
from attnzoo.engine.distributed import DistContext
from attnzoo.engine.probe import ProbeTask
from attnzoo.errors import ExitCode, UserError
from attnzoo.geometry import Role
from attnzoo.rundir.folder import RunFolder
from attnzoo.worker.train import train_run

ROLES = [(name, role) for name in attention.names() for role in Role if role in attention.ATTENTIONS.get(name).roles]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = tiny_probe(tmp_path_factory.mktemp("probe") / "run")
    assert train_run(run.path) == ExitCode.OK
    return run


def task(folder: Path, ctx: DistContext = ALONE, seed: int | None = None, **changes: str) -> ProbeTask:
    config: Any = configs.load(tiny_probe(folder, **changes).config)
    return ProbeTask(config.model, config.data, config.seed if seed is None else seed, ctx)


def test_metrics(uninterrupted: RunFolder) -> None:
    rows = uninterrupted.read_metrics()
    assert {"cost/params", "cost/gflops", "cost/ms"} < rows[0].keys()
    assert [row["step"] for row in rows if "val/accuracy" in row] == [4, 8]
    assert 0 <= rows[-1]["val/accuracy"] <= 1
    assert 1 / 6 <= rows[-1]["val/chance"] < 0.4
    assert uninterrupted.read_status()["accuracy"] == rows[-1]["val/accuracy"]


def test_no_pictures_are_drawn(uninterrupted: RunFolder) -> None:
    """There are no images; it was a warning of a TypeError."""
    assert "WARNING" not in uninterrupted.log.read_text()


def test_resumed_run_repeats_the_uninterrupted_one(uninterrupted: RunFolder, tmp_path: Path) -> None:
    check_resume(tiny_probe(tmp_path / "run"), uninterrupted, 6)


def test_saved_config_equals_the_config(uninterrupted: RunFolder) -> None:
    config = configs.load(uninterrupted.config)
    assert config.data.dataset["places"] == 2
    assert config.versions == {"data.dataset": "1"}
    assert configs.digest(config) == configs.digest(configs.load(uninterrupted.path / "experiment.yaml"))


@pytest.mark.parametrize("name", PROBES.names())
def test_the_true_answer_scores_at_the_ceiling_and_a_constant_at_chance(name: str, tmp_path: Path) -> None:
    probe = task(tmp_path, data__dataset=f"{{name: {name}, val_maps: 5}}")
    classes, answers = probe.spec.classes, probe.spec.answers
    true = {id_of(maps): labels for maps, labels in zip(probe.val.maps, probe.val.labels, strict=True)}

    def oracle(maps: Tensor, references: Tensor, content: Tensor) -> Tensor:
        return torch.stack([F.one_hot(true[id_of(image)], classes).float().flatten(1) for image in maps])

    values = probe.evaluate(oracle, lambda: None)
    assert values["accuracy"] == probe.spec.ceiling == 1
    best = 0.0
    for constant in range(classes):
        scores = F.one_hot(torch.tensor(constant), classes).float().repeat(answers)
        values = probe.evaluate(lambda maps, *_, scores=scores: scores.expand(len(maps), 32, -1), lambda: None)
        share = (probe.val.labels == constant).double().mean().item()
        assert values["accuracy"] == pytest.approx(share)
        best = max(best, values["accuracy"])
    if answers == 1:
        assert values["chance"] == pytest.approx(best)
    else:  # the best constant of each answer
        columns = probe.val.labels.unbind(-1)
        shares = [F.one_hot(column, classes).double().mean((0, 1)).max().item() for column in columns]
        assert values["chance"] == pytest.approx(sum(shares) / answers)


def id_of(image: Tensor) -> bytes:
    return image.numpy().tobytes()


def test_runs_of_one_seed_are_pairs(tmp_path: Path) -> None:
    """They share training maps, and initial values of all parameters that both models have."""
    one, other = (task(tmp_path / name, model__attention=f"{{name: {name}}}") for name in ("dense", "ms_deform"))
    for ours, theirs in zip(islice(one.batches(0, 100), 3), islice(other.batches(0, 100), 3), strict=True):
        assert torch.equal(ours.maps, theirs.maps)
        assert torch.equal(ours.labels, theirs.labels)
    weights = dict(one.model.named_parameters())
    shared = {name: value for name, value in other.model.named_parameters() if name in weights}
    assert {"embedding.weight", "head.2.weight", "content.weight"} <= shared.keys()
    assert all(torch.equal(weights[name], value) for name, value in shared.items())
    another = task(tmp_path / "another", seed=4)
    assert not torch.equal(next(another.batches(0, 100)).maps, next(one.batches(0, 100)).maps)
    assert torch.equal(another.val.maps, one.val.maps), "the validation maps do not depend on the seed"


def test_ranks_share_a_batch(tmp_path: Path) -> None:
    whole = next(task(tmp_path / "whole").batches(2, 100))
    parts = [
        next(task(tmp_path / str(rank), DistContext(rank, 2, torch.device("cpu"))).batches(2, 100)) for rank in range(2)
    ]
    assert torch.equal(torch.cat([part.maps for part in parts]), whole.maps)


@pytest.mark.parametrize(("name", "role"), ROLES, ids=str)
def test_every_attention_learns_in_every_role(name: str, role: Role, tmp_path: Path) -> None:
    """The loss of one batch falls, and every parameter that is trained gets a gradient."""
    levels = "1" if role == Role.STAGE else "2"
    block = f"{{name: {name}, level: 0}}" if "level" in attention.ATTENTIONS.options(name) else f"{{name: {name}}}"
    probe = task(tmp_path, model__role=role, model__levels=levels, model__attention=block)
    batch = next(probe.batches(0, 100))
    parameters = {name: p for name, p in probe.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(parameters.values(), 1e-2)
    losses = []
    for _ in range(6):
        loss = probe.loss(probe.model, batch, 1.0).total
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in parameters.values())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_query_of_a_stage_is_the_token_at_its_reference(tmp_path: Path) -> None:
    """The content of a query changes its own output, and with an attention that looks nowhere else no other."""
    probe = task(tmp_path, model__role="stage", model__attention="{name: window, window: 1}")
    maps, references, content = probe.val.inputs
    changed = content.clone()
    changed[:, 3] = content[:, 3].roll(1, -1)
    with torch.no_grad():
        differs = (probe.model(maps, references, changed) - probe.model(maps, references, content)).abs().amax((0, 2))
    assert differs[3] > 1e-3
    assert (differs[torch.arange(32) != 3] < 1e-6).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__dataset": "{name: raed}"}, r"unknown probe 'raed'.*did you mean 'read'"),
        ({"data__workers": "2"}, r"data\.workers = 2: probes are generated in the training process"),
        ({"model__preset": "detr_r50"}, r"model\.preset: this task has no presets"),
        ({"data__augment": "{name: photometric}"}, "unknown augmentation 'photometric'"),
    ],
)
def test_errors_of_the_config(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        task(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__role": "stage", "model__levels": "2"}, r"model\.levels = 2: a stage has one level"),
        ({"model__heads": "3"}, r"model\.heads = 3: must divide model\.dim = 16"),
        ({"model__dim": "18"}, r"model\.dim = 18: must be divisible by 4"),
        ({"model__num_classes": "5"}, r"model\.num_classes = 5: the data set has 12 classes"),
        ({"model__attention": "{name: neighborhood}"}, "does not support role decoder"),
    ],
)
def test_errors_of_the_model(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        task(tmp_path, **changes)
