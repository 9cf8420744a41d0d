"""Arguments that nobody would type on purpose give one line and exit code 2, and write nothing."""

import os
from pathlib import Path

import pytest
from PIL import Image

from attnzoo.__main__ import main
from attnzoo.data.images import configure_pillow
from attnzoo.inference import image_files

LONG = "x" * 5000


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "classes/train/cat", "classes/train/dog"):
        Path(folder).mkdir(parents=True)
    for name in ("classes/train/cat/a.png", "classes/train/dog/a.png", "a.png"):
        Image.new("RGB", (8, 8)).save(name)
    for name in ("loop", "loop.py", "loop.yaml", "loop.json"):
        Path(name).symlink_to(name)
    for name in ("pipe", "pipe.yaml", "pipe.pt"):
        os.mkfifo(name)
    Path("text.txt").write_text("x")
    Path("empty.pt").write_bytes(b"")
    Path("empty.yaml").write_text("")
    Path("list.yaml").write_text("- 1\n")
    Path("bytes.yaml").write_bytes(b"\x80\x81")
    Path("bad.py").write_text("def (:\n")
    Path("nul.py").write_bytes(b"a = '\0'\n")
    Path("base.yaml").write_text("base: folder\nname: x\n")
    Path("ok.yaml").write_text("base: base/detr_scenes.yaml\nname: x\n")
    return tmp_path


COMMANDS = [
    (["status", "a.png"], "a.png: is a file, not a folder"),
    (["status", "loop"], "loop: no such folder"),
    (["status", "/dev/null"], "/dev/null: is a file, not a folder"),
    (["status", LONG], "File name too long"),
    (["status", "nowhere", "--watch"], "nowhere: no such folder"),
    (["cancel", "loop"], "loop: no such folder"),
    (["cancel", "folder", "../x"], "folder: no sweep.json in it"),
    (["compare", "loop"], "loop: no such folder"),
    (["compare", "a.png"], "a.png: is a file, not a folder"),
    (["compare", LONG], "File name too long"),
    (["compare", "folder", "--html", "folder"], "folder: no runs in it"),
    (["weights", "loop"], "loop: no such file"),
    (["weights", "pipe.pt"], "pipe.pt: not a regular file"),
    (["weights", "empty.pt"], "empty.pt is empty: download it again"),
    (["weights", "folder"], "folder: no weights in this folder"),
    (["weights", LONG], "no such file"),
    (["data", "a.png"], "a.png: is a file, not a folder"),
    (["data", "classes", "--convert", "loop"], "--convert loop: Too many levels of symbolic links"),
    (["data", "classes", "--convert", "a.png/out"], "--convert a.png/out: "),
    (["data", "classes", "--convert", LONG], "File name too long"),
    (["data", "classes", "--sheet", "folder"], "--sheet folder: is a folder"),
    (["new", "a/b", "--data", "classes"], "NAME = 'a/b': expected letters"),
    (["new", "ü" * 200, "--data", "classes"], "NAME: 400 bytes long"),
    (["new", "y", "--data", "loop"], "loop: no such folder"),
    (["new", "ok", "--data", "classes"], "ok.yaml: exists already"),
    (["cost", "nowhere"], "nowhere: no such experiment file"),
    (["cost", "pipe.yaml"], "pipe.yaml: not a regular file"),
    (["cost", "loop.yaml"], "loop.yaml: no such experiment file"),
    (["cost", "bytes.yaml"], "bytes.yaml: not a text file"),
    (["cost", "list.yaml"], "list.yaml: expected a mapping"),
    (["cost", "swin_pico", "--at", "99999x99999"], "--at 99999x99999: expected at most"),
    (["cost", "swin_pico", "--seconds", "nan"], "--seconds nan: must be 0 or more"),
    (["bench", "ops", "--json", "loop.json"], "--json loop.json: Too many levels of symbolic links"),
    (["bench", "ops", "--json", "folder"], "--json folder: is a folder"),
    (["bench", "ops", "--json", "a.png/x"], "--json a.png/x: "),
    (["bench", "ops", "--device", "tpu"], "unknown device 'tpu'"),
    (["bench", "models", "--forward", "1x99999x99999"], "expected at most"),
    (["bench", "tables", "pipe"], "pipe: not a benchmark record"),
    (["probe", "loop.py"], "loop.py': no such file"),
    (["probe", "bad.py"], "bad.py:1: SyntaxError"),
    (["probe", "dense", "--plot", "folder"], "--plot folder: is a folder"),
    (["probe", "dense", "--seeds", "9" * 40], "expected a number at least 0"),
    (["check", "loop.py"], "loop.py': no such file"),
    (["check", "./pipe"], "plugin './pipe': "),
    (["check", "nul.py"], "nul.py"),
    (["check", "é"], "unknown attention 'é'"),
    (["check", f"x/{LONG}.py"], "no such file"),
    (["list", "["], "'['"),
    (["schema", "-o", "loop.json"], "-o loop.json: Too many levels of symbolic links"),
    (["schema", "-o", "a.png/x.json"], "a.png is not a folder"),
    (["run", "folder"], "folder: expected an experiment file, not a folder"),
    (["run", "pipe.yaml"], "pipe.yaml: not a regular file"),
    (["run", "base.yaml"], "folder: is a folder, not a file"),
    (["run", "ok.yaml", "output=loop"], "loop"),
    (["run", "ok.yaml", "plugins=[loop.py]"], "loop.py': no such file"),
    (["run", "ok.yaml", "slurm.profile=loop.yaml"], "'loop.yaml': no such file"),
    (["run", "ok.yaml", "sweep={include: [loop], seeds: [0]}"], "loop"),
    (["predict", "loop", "a.png", "-o", "out"], "loop: no such file"),
    (["predict", "x", "loop", "-o", "out"], "loop: no such image or folder"),
    (["draw", "x", "a.png", "-o", "loop"], "-o loop: "),
    (["draw", "x", "a.png", "-o", f"{LONG}.png"], "File name too long"),
    (["eval", "pipe.pt"], "pipe.pt: not a regular file"),
    (["export", "loop", "-o", "x.onnx"], "loop: no such file"),
]


@pytest.mark.parametrize(("command", "message"), COMMANDS, ids=[" ".join(command)[:50] for command, _ in COMMANDS])
def test_hostile_arguments_are_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], command: list[str], message: str
) -> None:
    before = sorted(here.rglob("*"))
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert len(error) < 1200
    assert message in error
    assert sorted(here.rglob("*")) == before


def test_unknown_pixel_limit_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every image was skipped, each with this reason."""
    monkeypatch.setattr(image_files, "configure_pillow", configure_pillow.__wrapped__)
    monkeypatch.setenv("ATTNZOO_MAX_PIXELS", "many")
    assert main(["predict", "x", "a.png", "-o", "out"]) == 2
    assert capsys.readouterr().err == "error: ATTNZOO_MAX_PIXELS = 'many': expected a number of pixels\n"
