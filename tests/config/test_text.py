"""Any text in a config survives saving and loading, in any locale."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.load import Experiment, load_saved, save
from attnzoo.errors import UserError
from attnzoo.sweep.expand import expand

PIECES = [
    "${",
    "}",
    "\\",
    "$",
    "{",
    "'",
    '"',
    "\n",
    "\r",
    ": ",
    "#",
    " ",
    "price",
    "é",
    "\u2028",
    "\u0085",
    "\ufeff",
    "表",
]
# A NUL is refused: tests/config/test_hostile.py.
ANY_TEXT = st.text(max_size=20).map(lambda text: text.replace("\0", ""))
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), ANY_TEXT)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    path = tmp_path_factory.mktemp("config") / "x.yaml"
    path.write_text("name: x\ntrain: {steps: 5}\n")
    return Experiment(path).config()


@settings(max_examples=40, deadline=None, derandomize=True)
@example(r"\${price}", "${price}")
@example("\\\\${a}\\", "${")
@given(TEXTS, TEXTS)
def test_any_text_is_saved_and_loaded(
    config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory, description: str, option: str
) -> None:
    model = dataclasses.replace(config.model, encoder=dataclasses.replace(config.model.encoder))
    model.encoder.attention = {"name": "mine", "text": option, "list": [option, {"below": option}]}
    written = dataclasses.replace(config, description=description, model=model)
    path = tmp_path_factory.mktemp("saved") / "config.yaml"
    save(written, path)
    assert load_saved(path) == written


def test_escaped_interpolation_is_text_in_a_run_and_in_its_sweep(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: x\ndescription: costs \\${price}\ntrain: {steps: 5}\n"
        "sweep: {grid: {model.encoder.attention: [{name: mine, text: 'a \\${b}'}]}}\n"
    )
    (run,) = expand(Experiment(path))
    assert run.config.description == "costs ${price}"
    assert run.config.model.encoder.attention["text"] == "a ${b}"
    save(run.config, tmp_path / "config.yaml")
    assert load_saved(tmp_path / "config.yaml") == run.config


def test_string_instead_of_a_number_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: x\ntrain: {steps: '\\${a}'}\n")
    with pytest.raises(UserError, match=r"train\.steps = '\$\{a\}': expected int"):
        Experiment(path).config()


LOCALE_SCRIPT = """
import dataclasses, json, locale, sys
from attnzoo.__main__ import main
from attnzoo.config.load import Experiment, load_saved, save
from attnzoo.rundir.folder import RunFolder

assert locale.getpreferredencoding(False).upper() == sys.argv[1], locale.getpreferredencoding(False)
config = Experiment("x.yaml").config()
run = RunFolder("runs/x/seed=0")
for text in json.loads(sys.argv[2]):
    changed = dataclasses.replace(config, description=text)
    save(changed, run.config)
    assert load_saved(run.config) == changed, text
save(config, run.config)
assert load_saved(run.config) == config
run.metrics.write_text('{"step": 5, "val/AP": 0.5}\\n')
run.write_status(state="done", step=5, steps=5)
sys.exit(main(["compare", "runs/x"]))
"""

HARD_TEXTS = [
    "${price}",
    "\\${price}",
    "\\\\${a}\\",
    'it\'s "quoted"',
    "größer als 表 \u2028\u0085\ufeff",
    "é: #x\n\r${",
]


@pytest.mark.parametrize(
    ("locale", "encoding"), [("C", "ANSI_X3.4-1968"), ("C.UTF-8", "UTF-8"), ("latin1", "ISO-8859-1")]
)
def test_files_are_utf8_in_any_locale(tmp_path: Path, locale: str, encoding: str) -> None:
    (tmp_path / "x.yaml").write_text("name: x\ndescription: größer als 表\ntrain: {steps: 5}\n", encoding="utf-8")
    environment = os.environ | {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    if locale == "latin1":
        compiler = shutil.which("localedef")
        if compiler is None:
            pytest.skip("NOT TESTED HERE: needs localedef")
        made = subprocess.run(
            [compiler, "-i", "en_US", "-f", "ISO-8859-1", tmp_path / "latin1"], capture_output=True, timeout=60
        )
        if made.returncode:
            pytest.skip("NOT TESTED HERE: localedef has no sources of locales")
        environment["LOCPATH"] = str(tmp_path)
    command = [sys.executable, "-c", LOCALE_SCRIPT, encoding, json.dumps(HARD_TEXTS)]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120)
    assert ended.returncode == 0, ended.stderr.decode("latin1")
    assert "größer als 表" in (tmp_path / "runs/x/seed=0/config.yaml").read_text(encoding="utf-8")
    assert "0.500 ± n/a" in (tmp_path / "runs/x/comparison.md").read_text(encoding="utf-8")
