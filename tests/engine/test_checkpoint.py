"""Checkpoint files: rotation, corruption, interrupted writes."""

import io
import logging
import pickle
import re
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image

from attnzoo.engine.checkpoint import CheckpointManager, CorruptCheckpointError, load_checkpoint
from attnzoo.errors import UserError


def state(step: int) -> dict:
    return {"step": step, "model": {"weight": torch.full((3,), float(step))}, "ema": None, "window": [[1.0, 2.0]]}


@pytest.fixture
def checkpoints(tmp_path):
    manager = CheckpointManager(tmp_path / "checkpoints")
    for step in (5, 10, 15):
        manager.save(state(step), step)
    return manager


def test_two_latest_are_kept_and_hold_what_was_saved(checkpoints):
    assert [path.name.split(".")[0] for path in sorted(checkpoints.folder.iterdir())] == [
        "step-00000010",
        "step-00000015",
    ]
    loaded = load_checkpoint(checkpoints.newest_valid())
    assert torch.equal(loaded.pop("model")["weight"], torch.full((3,), 15.0))
    assert loaded == {"step": 15, "ema": None, "window": [[1.0, 2.0]]}


def test_empty_folder_has_no_checkpoint(tmp_path):
    checkpoints = CheckpointManager(tmp_path / "nowhere")
    assert checkpoints.newest_valid() is checkpoints.latest() is checkpoints.best() is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_corrupt_latest_checkpoint_is_logged_and_the_previous_one_used(checkpoints, damage, caplog):
    last = checkpoints.latest()
    content = bytearray(last.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    last.write_bytes({"truncated": content[:-100], "flipped": content, "empty": b""}[damage])
    with pytest.raises(CorruptCheckpointError):
        load_checkpoint(last)
    with caplog.at_level(logging.WARNING):
        path = checkpoints.newest_valid()
    assert load_checkpoint(path)["step"] == 10
    assert str(last) in caplog.text
    assert "falling back" in caplog.text
    # the corrupt file does not count among the two kept
    checkpoints.save(state(12), 12)
    checkpoints.save(state(13), 13)
    assert load_checkpoint(checkpoints.latest())["step"] == 13


def test_best_is_used_if_the_others_are_corrupt_and_nothing_is_overwritten_if_all_are(checkpoints):
    checkpoints.save_best(checkpoints.latest())
    for path in checkpoints.folder.glob("step-*"):
        path.write_bytes(b"no")
    best = checkpoints.newest_valid()
    assert best == checkpoints.best()
    best.write_bytes(b"no")
    with pytest.raises(UserError, match="all checkpoints are corrupt"):
        checkpoints.newest_valid()


def test_better_checkpoint_replaces_the_best(checkpoints):
    first = checkpoints.latest()
    checkpoints.save_best(first)
    checkpoints.save_best(first)
    path = checkpoints.save(state(20), 20)
    checkpoints.save_best(path)
    assert load_checkpoint(checkpoints.best())["step"] == 20
    assert len(list(checkpoints.folder.glob("best-*"))) == 1


def test_leftovers_of_an_interrupted_write_are_ignored_and_deleted(checkpoints):
    torn = checkpoints.folder / ".step-00000020.0123456789abcdef.pt.x1y2"
    torn.write_bytes(b"half")
    assert load_checkpoint(checkpoints.newest_valid())["step"] == 15
    checkpoints.save(state(25), 25)
    assert not torn.exists()


def test_documented_snippet_loads_the_evaluated_weights(uninterrupted):
    page = Path(__file__).parents[2] / "docs" / "checkpoints.md"
    snippet = textwrap.dedent(
        "".join(re.findall(r"^    .*\n", page.read_text().partition("## Weights of other")[0], re.MULTILINE))
    )
    example = "runs/ablate_points/points=4-seed=1000"
    assert example in snippet
    names = {}
    image = uninterrupted.path / "a.png"
    Image.new("RGB", (40, 30)).save(image)
    files = f'"{image}", "{image}"'
    exec(snippet.replace(example, str(uninterrupted.path)).replace('"a.jpg", "b.jpg"', files), names)
    loaded = names["model"].model.state_dict()
    state = load_checkpoint(CheckpointManager(uninterrupted.checkpoints).best())
    assert state["step"] == max(uninterrupted.read_metrics(), key=lambda row: row.get("val/AP", -1))["step"]
    differing = [key for key, weight in state["ema"].items() if not torch.equal(loaded[key], weight)]
    assert [key for key in differing if not key.endswith("num_batches_tracked")] == []  # which nothing reads
    assert not all(torch.equal(loaded[key], weight) for key, weight in state["model"].items())
    assert len(names["results"]) == 2


class Payload:
    def __reduce__(self):
        return print, ("executed",)


def test_pickle_that_runs_code_is_not_loaded(tmp_path, capsys):
    torch.save({"step": 1, "model": Payload()}, tmp_path / "foreign.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(tmp_path / "foreign.pt")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("written", [-1, 100])
def test_out_of_memory_is_named_and_leaves_the_earlier_checkpoints(checkpoints, monkeypatch, written):
    class Full(io.BytesIO):
        def write(self, content):
            if self.tell() > written:
                raise MemoryError
            return super().write(content)

    before = sorted(checkpoints.folder.iterdir())
    monkeypatch.setattr(io, "BytesIO", Full)
    with pytest.raises(MemoryError, match="not enough memory for the checkpoint of step 20"):
        checkpoints.save(state(20), 20)
    assert sorted(checkpoints.folder.iterdir()) == before
