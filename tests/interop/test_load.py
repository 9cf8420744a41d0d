"""What loading does with weights that fit in part or not at all, and with files that are unsafe or broken."""

import argparse
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import tiny
from support.oracles import CASES, small_model
from torch import Tensor, nn

import attnzoo
from attnzoo import interop, models
from attnzoo.__main__ import main
from attnzoo.errors import UserError
from attnzoo.inference.weights import describe_weights
from attnzoo.models.detr.detector import Detector

LEVELS: dict[str, Any] = {"backbone": {"strides": [8, 16, 32]}, "neck": {"c6": True}}


def random(model: Detector) -> Detector:
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
    return model


@pytest.fixture(scope="module")
def trained() -> Detector:
    return random(tiny(**LEVELS))


def test_other_classes_keep_their_initial_heads(trained: Detector) -> None:
    model = tiny(**LEVELS, num_classes=3)
    initial = model.heads.classes[0].weight.detach().clone()
    report = interop.load(model, trained.state_dict())
    assert torch.equal(model.heads.classes[0].weight, initial)
    assert torch.equal(model.heads.boxes[1].last_layer.weight, trained.heads.boxes[1].last_layer.weight)
    assert set(report.missing) == {f"heads.classes.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")}
    assert "other classes, (5, 32) in the file, (3, 32) in the model" in str(report)


@pytest.mark.parametrize(("queries", "rows"), [(4, 4), (9, 6)])
def test_other_number_of_queries(trained: Detector, queries: int, rows: int) -> None:
    model = tiny(**LEVELS, queries=queries)
    initial = model.queries.embedding.weight.detach().clone()
    report = interop.load(model, trained.state_dict())
    loaded = model.queries.embedding.weight
    assert torch.equal(loaded[:rows], trained.queries.embedding.weight[:rows])
    assert torch.equal(loaded[rows:], initial[rows:])
    assert report.reshaped == {"queries.embedding.weight": f"the first {rows} of 6 queries"}
    assert list(report.missing) == (["queries.embedding.weight"] if queries > 6 else [])


@pytest.mark.parametrize("changes", [{"queries": 4}, {"queries": 9}, {"backbone": {"strides": [16, 32]}}])
def test_dry_runs_load_nothing(trained: Detector, tmp_path: Path, changes: dict[str, Any]) -> None:
    """On the meta device, where a model of other queries or levels has no initial values to keep."""
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    with torch.device("meta"):
        model = tiny(**LEVELS | changes, weights=str(tmp_path / "weights.pt"))
    assert all(parameter.is_meta for parameter in model.parameters())


def test_fewer_levels_take_those_of_the_same_maps(trained: Detector) -> None:
    """The file has strides 8, 16, 32 and 64; of a model with 16 and 32 alone, nothing keeps its initial values."""
    model = tiny(backbone={"strides": [16, 32]}, neck={"c6": False})
    report = interop.load(model, trained.state_dict())
    assert not report.missing
    ours, theirs = model.encoder[0].attention, trained.encoder[0].attention
    shape = (4, -1, 4, 2, 32)  # heads, levels, points, xy
    expected = theirs.sampling_offsets.weight.view(shape)[:, 1:3]
    assert torch.equal(ours.sampling_offsets.weight.view(shape), expected)
    assert torch.equal(model.neck.level_embedding, trained.neck.level_embedding[1:3])
    assert torch.equal(model.neck.projections[0][0].weight, trained.neck.projections[1][0].weight)
    assert "other feature levels: 1 as 0, 2 as 1" in str(report)


def test_more_levels_keep_the_initial_values_of_new_ones(trained: Detector) -> None:
    small = random(tiny(backbone={"strides": [16, 32]}, neck={"c6": False}))
    model = tiny(**LEVELS)
    initial = model.decoder[0].cross_attention.attention_weights.bias.detach().clone().view(4, 4, 4)
    report = interop.load(model, small.state_dict())
    loaded = model.decoder[0].cross_attention.attention_weights.bias.view(4, 4, 4)
    assert torch.equal(loaded[:, [0, 3]], initial[:, [0, 3]])
    assert torch.equal(loaded[:, 1:3], small.decoder[0].cross_attention.attention_weights.bias.view(4, 2, 4))
    assert report.missing["neck.c6.0.weight"] == "another feature level"


def test_another_attention_keeps_its_initial_values(trained: Detector) -> None:
    model = tiny(**LEVELS, encoder={"attention": {"name": "dense"}})
    report = interop.load(model, trained.state_dict())
    assert set(report.missing.values()) == {"another attention"}
    assert {name.split(".")[2] for name in report.missing} == {"attention"}
    assert torch.equal(model.encoder[0].ffn.linear1.weight, trained.encoder[0].ffn.linear1.weight)
    assert any("sampling_offsets" in name for name in report.skipped)


def test_strict_refuses_other_depths(trained: Detector) -> None:
    model = tiny(**LEVELS, decoder={"layers": 3})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=r"the state dict has \d+ missing keys, e\.g\. 'decoder\.2\."):
        interop.load(model, trained.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    report = interop.load(model, trained.state_dict(), strict=False)
    assert torch.equal(model.decoder[1].ffn.linear1.weight, trained.decoder[1].ffn.linear1.weight)
    assert "decoder.2.ffn.linear1.weight" in report.missing


def test_heads_that_differ_do_not_fit_a_model_that_shares_them() -> None:
    refined = random(tiny(**LEVELS, head={"refine": True}))
    with pytest.raises(UserError, match=r"differ in the file, but the model shares them"):
        interop.load(tiny(**LEVELS), refined.state_dict())


def test_weights_of_the_wrong_kind_are_refused() -> None:
    model = tiny(**LEVELS)
    with pytest.raises(UserError, match=r"weights of no known source; nearest is .*, which has \d+ of 2 names"):
        interop.load(model, {"blocks.0.weight": torch.zeros(1), "query_embed.weight": torch.zeros(1)})
    swin = models.create("swin_pico")
    with pytest.raises(UserError, match=r"weights of classifier or backbone of attnzoo, none of which fits a Detector"):
        interop.load(model, swin.state_dict())
    with pytest.raises(UserError, match=r"holds a backbone alone: load it as model\.backbone\.weights"):
        interop.load(model, model.backbone.body.state_dict())
    with pytest.raises(UserError, match=r"unknown source 'swim'; did you mean 'swin'\?"):
        interop.load(swin, swin.state_dict(), "swim")
    with pytest.raises(UserError, match=r"not weights of DETR .*, but of .* of attnzoo \(source: attnzoo_classifier\)"):
        interop.load(swin, swin.state_dict(), "detr")
    with pytest.raises(UserError, match=r"the state dict: weights not of Swin .*: none has names such as foo"):
        interop.load(swin, {"foo": torch.zeros(1)}, "swin")
    with pytest.raises(UserError, match=r"weights of no known source: none has names such as foo\.0"):
        interop.load(swin, {"foo.0": torch.zeros(1)})


def test_backbone_of_a_detector(trained: Detector, tmp_path: Path) -> None:
    torch.save(trained.state_dict(), tmp_path / "detector.pt")
    model = tiny(**LEVELS | {"backbone": {"strides": [8, 16, 32], "weights": str(tmp_path / "detector.pt")}})
    expected = trained.backbone.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.backbone.state_dict().items())
    assert not torch.equal(model.encoder[0].ffn.linear1.weight, trained.encoder[0].ffn.linear1.weight)


NECK, HEAD, QUERIES = "neck.projections.1.0", "heads.classes.0.bias", "queries.embedding.weight"
DAMAGE: dict[str, tuple[str, Callable[[Tensor], Tensor], str]] = {
    "sparse": (HEAD, Tensor.to_sparse, f"{HEAD} is sparse; expected a dense tensor of real numbers"),
    "quantized": (HEAD, lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), f"{HEAD} is quantized; expected"),
    "complex": (HEAD, lambda x: x.to(torch.complex64), f"{HEAD} is complex; expected"),
    "integers": (HEAD, Tensor.int, f"has int32 values for {HEAD}, expected float32"),
    "NaN": (HEAD, lambda x: x * float("nan"), f"has NaN, infinity or no values in {HEAD}"),
    "NaN in float8": (QUERIES, lambda x: (x * float("nan")).to(torch.float8_e4m3fn), f"no values in {QUERIES}"),
    "meta": (HEAD, lambda x: x.to("meta"), f"has NaN, infinity or no values in {HEAD}"),
    "scalar": (HEAD, lambda x: x[0], rf"size mismatch for {HEAD}: \(\) in the file"),
    "size of a level": (f"{NECK}.bias", lambda x: x[1:], rf"size mismatch for {NECK}\.bias: \(31,\) in the file"),
    "levels": ("neck.level_embedding", lambda x: x[1:], r"size mismatch for neck\.level_embedding: \(3, 32\)"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", DAMAGE)
def test_tensors_that_cannot_be_loaded_are_named(trained: Detector, kind: str) -> None:
    """Some raised an error of torch after others were loaded; integers and NaN were loaded."""
    name, damage, message = DAMAGE[kind]
    model = tiny(backbone={"strides": [16, 32]}, neck={"c6": False})
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        interop.load(model, {**trained.state_dict(), name: damage(trained.state_dict()[name])})
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_level_that_lacks_a_tensor_is_refused(trained: Detector) -> None:
    state = {name: tensor for name, tensor in trained.state_dict().items() if name != f"{NECK}.bias"}
    with pytest.raises(UserError, match=rf"the state dict has no {NECK}\.bias"):
        interop.load(tiny(backbone={"strides": [16, 32]}, neck={"c6": False}), state)


class Unsafe(nn.Module):
    pass


def test_unsafe_files_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "unsafe.pth"
    torch.save({"model": {"weight": torch.zeros(1)}, "cfg": Unsafe()}, path)
    with pytest.raises(
        UserError, match=r"unsafe\.pth holds a .*Unsafe, and loading it could run code; if you trust"
    ) as e:
        interop.load(nn.Linear(1, 1), path)
    assert "weights_only=False" in str(e.value)
    assert "\n" not in str(e.value)


def test_files_in_the_format_before_torch_1_6(trained: Detector, tmp_path: Path) -> None:
    content = {"model": trained.state_dict(), "args": argparse.Namespace(lr=1e-4)}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    model = tiny(**LEVELS)
    assert not interop.load(model, tmp_path / "old.pth").missing
    assert torch.equal(model.queries.embedding.weight, trained.queries.embedding.weight)


def test_broken_files_and_folders(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    (tmp_path / "list.pt").write_bytes(pickle.dumps([1]))
    torch.save([1, 2], tmp_path / "numbers.pt")
    (tmp_path / "index.json").write_text('{"weight_map": {"weight": "index.json"}}')
    (tmp_path / "other.json").write_text('{"weight": 3}')
    with pytest.raises(UserError, match=r"index\.json: weight_map has index\.json, which holds no tensors"):
        interop.load(model, tmp_path / "index.json")
    for name in ("list.pt", "numbers.pt", "other.json"):
        with pytest.raises(UserError, match=rf"{name} is not a state dict"):
            interop.load(model, tmp_path / name)
    with pytest.raises(UserError, match=r"no weights in this folder; a run folder has checkpoints/\*\.pt"):
        interop.load(model, tmp_path)
    with pytest.raises(UserError, match="no such file"):
        interop.load(model, tmp_path / "nowhere.pt")


CUT = "is cut short or damaged: download it again"
PAGE, POINTER = b"\n<!DOCTYPE html>\n<html></html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
DOWNLOADS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "is empty: download it again"),
    "page": (lambda content: PAGE, "is a web page: download the file itself"),
    "pointer": (lambda content: POINTER, "is a pointer of Git LFS, without the weights: fetch them with git lfs pull"),
    "a few bytes": (lambda content: content[:3], CUT),
    "header": (lambda content: content[:20], CUT),
    "half": (lambda content: content[: len(content) // 2], CUT),
    "end": (lambda content: content[:-10], CUT),
}


@pytest.mark.parametrize("kind", DOWNLOADS)
@pytest.mark.parametrize("name", ["new.pth", "old.pth", "model.safetensors", "shard.safetensors"])
def test_failed_downloads(kind: str, name: str, tmp_path: Path) -> None:
    """All were said to be no state dict."""
    change, message = DOWNLOADS[kind]
    state = {"weight": torch.randn(3, 40), "bias": torch.randn(3)}
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name == "new.pth")
    model = nn.Linear(40, 3)
    interop.load(model, path)
    path.write_bytes(change(path.read_bytes()))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(f'{{"weight_map": {{"weight": "{name}"}}}}')
    with pytest.raises(UserError, match=re.escape(f"{path} {message}")):
        interop.load(model, index if name.startswith("shard") else path)


def test_run_folder_gives_the_averaged_weights_of_the_best_step(
    trained: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnzoo.engine.checkpoint import CheckpointManager

    manager = CheckpointManager(tmp_path / "run" / "checkpoints")
    averaged = {name: tensor + 1 for name, tensor in trained.state_dict().items()}
    best = manager.save({"model": trained.state_dict(), "ema": averaged, "optimizer": {"state": {}}}, 3)
    manager.save_best(best)
    manager.save({"model": trained.state_dict(), "ema": None}, 4)
    monkeypatch.setenv("HOME", str(tmp_path))
    model = tiny(**LEVELS, weights="~/run")  # as in YAML, where no shell expands it
    assert torch.equal(model.queries.embedding.weight, trained.queries.embedding.weight + 1)
    with next((tmp_path / "run" / "checkpoints").glob("best*")).open("r+b") as file:
        file.seek(-2000, 2)
        file.write(b"corrupt")
    with pytest.raises(UserError, match=r"model\.weights: .*corrupt checkpoint, checksum mismatch"):
        tiny(**LEVELS, weights="~/run")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(models.create("swin_pico", num_classes=7).state_dict(), tmp_path / "pico.pt")
    assert main(["weights", str(tmp_path / "pico.pt")]) == 0
    output = capsys.readouterr().out
    assert "classifier or backbone of attnzoo" in output
    assert "7 classes" in output
    assert "preset: swin_pico" in output
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    assert main(["weights", str(tmp_path / "other.pt")]) == 2
    assert "weights of no known source" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["", "module."])
def test_tensors_with_nan_have_the_name_in_the_file(
    prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`weights` said that they fit, and what refused them gave the name in the model."""
    path, key = tmp_path / "pico.pt", f"{prefix}head.bias"
    state = {f"{prefix}{name}": each for name, each in models.create("swin_pico").state_dict().items()}
    torch.save(state | {key: state[key] * torch.nan}, path)
    message = f"has NaN, infinity or no values in {key}{' (head.bias)' if prefix else ''}"
    assert main(["weights", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"  is refused: {message}"
    assert main(["export", str(path), "-o", str(tmp_path / "a.pt2")]) == 2
    assert capsys.readouterr().err == f"error: {path} {message}\n"


def test_the_part_with_nan_is_named(tmp_path: Path) -> None:
    """Query, key and value of transformers make up one tensor."""
    path = interop.export_huggingface(small_model(CASES["refine"]), tmp_path) / "model.safetensors"
    state, key = load_file(path), "model.decoder.layers.1.self_attn.v_proj.weight"
    save_file(state | {key: state[key] * torch.nan}, path)
    message = f"has NaN, infinity or no values in {key} (decoder.1.self_attention.in_proj_weight)"
    assert str(describe_weights(tmp_path)).splitlines()[-1] == f"  is refused: {message}"
    with pytest.raises(UserError, match=re.escape(f"{path} {message}")):
        attnzoo.load_model(tmp_path)
