"""Pickles that `weights_only=True` refuses: the advice in the message works, and finding it out runs no code."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attnzoo import interop
from attnzoo.errors import UserError


class Extra:
    """Something that training code keeps beside the model."""


class Harmful:
    def __init__(self, function: Any):
        self.function = function

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, ("harm",)


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def arrays() -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in linear().state_dict().items()}


CONTENTS = {
    "whole module": (linear(), ".state_dict()"),
    "module under a name": ({"epoch": 3, "ema": None, "model": linear()}, '["model"].state_dict()'),
    "state dict beside something": ({"model": linear().state_dict(), "cfg": Extra()}, '["model"], "weights.pt")'),
    "state dict below two names": (
        {"state_dict": {"model": linear().state_dict()}, "cfg": Extra()},
        '["state_dict"]["model"]',
    ),
    "arrays": ({"model": arrays()}, "torch.as_tensor(each)"),
    "arrays and numbers": ({**arrays(), "epoch": 3, "cfg": Extra()}, "torch.as_tensor(each)"),
    "under another name": ({"epoch": 3, "params": linear().state_dict(), "cfg": Extra()}, "['params']"),
    "arrays beside tensors": ({**linear().state_dict(), "bias": arrays()["bias"]}, "torch.as_tensor(each)"),
    "tensors beside something": ({**linear().state_dict(), "cfg": Extra()}, "isinstance(each, torch.Tensor)"),
}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("name", CONTENTS)
def test_the_advice_gives_a_file_that_loads(
    name: str, new: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, part = CONTENTS[name]
    monkeypatch.chdir(tmp_path)
    torch.save(content, "file.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(UserError, match=r"file\.pth holds a .*, and loading it could run code; if you trust") as error:
        interop.load(nn.Linear(3, 2), "file.pth")
    advice = re.search(r"keep its tensors alone: (torch\.save\(.*\))\Z", str(error.value))
    assert advice is not None
    assert part in advice[1]
    exec(advice[1], {"torch": torch})
    model = nn.Linear(3, 2)
    interop.load(model, "weights.pt")
    assert torch.equal(model.weight, linear().weight)
    assert torch.equal(model.bias, linear().bias)


def test_a_pickle_without_tensors(tmp_path: Path) -> None:
    """The advice wrote a file without any."""
    nested: dict[str, Any] = {"cfg": Extra(), "epoch": 3, "model": {}}
    nested["model"]["model"] = nested
    for content in (nested, [Extra()]):
        torch.save(content, tmp_path / "file.pth")
        with pytest.raises(UserError, match=r"file\.pth is not a state dict \(it holds a .*Extra, and no tensors\)"):
            interop.load(nn.Linear(3, 2), tmp_path / "file.pth")


def test_finding_the_advice_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for function, message in (
        (np.save, r'\["model"\]'),
        (os.mkdir, r"would run posix\.mkdir when it is loaded"),
    ):
        torch.save({"model": linear().state_dict(), "cfg": Harmful(function)}, "file.pth")
        with pytest.raises(UserError, match=message):
            interop.load(nn.Linear(3, 2), "file.pth")
        assert [path.name for path in tmp_path.iterdir()] == ["file.pth"]


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_program_of_torchscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(linear()), "program.pt")
    with pytest.raises(UserError, match=r"program\.pt holds a TorchScript program; keep its tensors alone: ") as error:
        interop.load(nn.Linear(3, 2), "program.pt")
    exec(str(error.value).partition("alone: ")[2], {"torch": torch})
    assert interop.load(nn.Linear(3, 2), "weights.pt").loaded == ["weight", "bias"]
