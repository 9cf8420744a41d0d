"""The commands of docs/your-own-data.md, in their order."""

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from attnzoo import models
from attnzoo.__main__ import main
from attnzoo.config.load import Experiment, save
from attnzoo.engine.checkpoint import CheckpointManager

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "your-own-data.md").read_text()
COMMANDS = re.findall(r"^ +((?:attnzoo|python|make) .+)$", PAGE, re.MULTILINE)


def is_training(command: str) -> bool:
    return command == "make demo" or (" run " in command and "--dry-run" not in command)


def execute(command: str) -> None:
    """Run a command in this process, in the current folder."""
    program, *words = shlex.split(command)
    if program == "attnzoo":
        assert main(words) == 0, command
    else:
        assert program == "python"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words)
            runpy.run_path(words[0], run_name="__main__")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run: with the scripts of the docs, a run of the demo and a published detector, untrained."""
    (tmp_path / "docs").mkdir()
    shutil.copytree(ROOT / "docs" / "examples", tmp_path / "docs" / "examples")
    with torch.device("meta"):
        model = models.create("deformable_detr_r50_refine")
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(1, generator=generator).expand(tensor.shape).clone()
        for name, tensor in model.state_dict().items()
    }
    torch.save({"model": weights}, tmp_path / "deformable_detr_refine.pth")
    run = tmp_path / "runs" / "ablate_points" / "points=4-seed=1000"
    config: Any = Experiment("experiments/ablate_points.yaml").config()
    (run / "checkpoints").mkdir(parents=True)
    save(config, run / "config.yaml")
    CheckpointManager(run / "checkpoints").save({"model": models.build(config.model, 10).state_dict(), "ema": None}, 5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_page_has_every_command() -> None:
    verbs = {match[1] for command in COMMANDS if (match := re.match(r"attnzoo (\w+)", command))}
    assert verbs == {"data", "new", "run", "weights", "compare"}
    assert len(COMMANDS) == 12


@pytest.mark.slow
def test_commands_without_training(folder: Path) -> None:
    for command in COMMANDS:
        if not is_training(command) and "compare" not in command:
            execute(command)
    assert (folder / "my_data.png").stat().st_size > 10_000
    assert (folder / "shapes_data" / "annotations" / "val.json").is_file()


@pytest.mark.slow
@pytest.mark.long
def test_commands_that_train(folder: Path) -> None:
    """All commands in order but the demo, whose training is tested elsewhere."""
    for command in COMMANDS:
        if command != "make demo":
            execute(command)
    table = (folder / "docs" / "results" / "finetune" / "comparison.md").read_text()
    assert "finetune" in table
    assert (folder / "runs" / "shapes" / "seed=0" / "status.json").read_text().count('"done"')
