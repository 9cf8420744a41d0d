"""The Makefile: errors of `make setup`, its targets, and the workflows that call them."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
spec = importlib.util.spec_from_file_location("long_tests", ROOT / "tools" / "long_tests.py")
long_tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(long_tests)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


def program(folder: Path, name: str, script: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def setup_error(folder: Path, **variables: str) -> str:
    """The one line that a failing `make setup` prints, without make's own lines; it creates no files."""
    before = sorted(folder.iterdir())
    arguments = ["make", "setup", *(f"{name}={value}" for name, value in variables.items())]
    done = subprocess.run(arguments, cwd=folder, text=True, capture_output=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode != 0
    assert sorted(folder.iterdir()) == before
    lines = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("make: ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_missing_python(folder: Path) -> None:
    assert "python9 is missing: install Python 3.11 or later" in setup_error(folder, PYTHON="python9")


def test_old_python(folder: Path) -> None:
    old = program(folder, "old", "exit 1")
    assert "old is too old: install Python 3.11 or later" in setup_error(folder, PYTHON=old)


def test_missing_venv(folder: Path) -> None:
    bare = program(folder, "bare", 'case "$2" in *venv*) exit 1;; esac')
    assert "has no venv: install it (Debian: apt-get install python3-venv)" in setup_error(folder, PYTHON=bare)


def test_missing_compiler(folder: Path) -> None:
    assert "no C++20 compiler (g++-1): install one" in setup_error(folder, CXX="g++-1")


def test_help_and_contributing_list_every_target() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, text=True, capture_output=True, check=True).stdout
    assert {line.split()[1] for line in listed.splitlines() if line.startswith("make ")} == TARGETS
    table = [line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| `make ")]
    assert set(re.findall(r"`make ([a-z-]+)", "\n".join(table))) == TARGETS - {"help"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_existing_targets_and_scripts(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert {"name", True, "jobs"} <= set(workflow)  # PyYAML reads the key `on` as True
    for job in workflow["jobs"].values():
        assert {"runs-on", "timeout-minutes", "steps"} <= set(job)
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])
        commands = [step["run"] for step in job["steps"] if "run" in step]
        called = {target for command in commands for target in re.findall(r"^make ([a-z-]+)$", command)}
        assert called
        assert called <= TARGETS
        for script in (command for command in commands if command.startswith(".ci/")):
            assert os.access(ROOT / script, os.X_OK)


def test_workflows_run_lint_and_tests_on_push_and_slow_tests_weekly() -> None:
    text = {path.stem: path.read_text() for path in WORKFLOWS}
    assert set(text) == {"test", "slow"}
    assert "push" in yaml.safe_load(text["test"])[True]
    assert {"make lint", "make test"} <= set(re.findall(r"make [a-z-]+", text["test"]))
    assert set(yaml.safe_load(text["slow"])[True]) == {"schedule", "workflow_dispatch"}
    assert {"make test-slow", "make test-slurm"} <= set(re.findall(r"make [a-z-]+", text["slow"]))


def test_long_tests_are_logged_with_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; print('a line'); sys.exit(int(sys.argv[1]))"
    commands = {name: [sys.executable, "-c", script, code] for name, code in (("passes", "0"), ("fails", "3"))}
    monkeypatch.setattr(long_tests, "commands", lambda faults, out: commands)
    assert long_tests.main(["--out", str(tmp_path)]) == 1
    header, *lines = (tmp_path / "test-long.txt").read_text().splitlines()
    assert header.startswith("commit ")
    assert lines[:2] == ["==== passes", "a line"]
    assert lines[2].startswith("==== passes: exit code 0 after ")
    assert lines[-1].startswith("==== fails: exit code 3 after ")


def test_long_tests_exist() -> None:
    soak = long_tests.commands(30, Path("out"))["soak"]
    assert (ROOT / soak[1]).is_file()


def test_log_of_long_tests_has_neither_steps_nor_temporary_paths() -> None:
    assert long_tests.log_line("2026-11-28 01:57:24 INFO step 5/600: train/loss 7.7") is None
    assert long_tests.log_line(f"rootdir: {long_tests.ROOT}") == "rootdir: ."
    assert long_tests.log_line("2: time_over at step 5") == "2: time_over at step 5"
    assert long_tests.log_line(f"submitted ({tempfile.gettempdir()}/soak/runs)") == "submitted (TMP/soak/runs)"
