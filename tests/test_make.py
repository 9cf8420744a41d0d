"""What `make` says where something it needs is missing: one line with what to install, and nothing made."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


def program(folder: Path, name: str, script: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def refused(folder: Path, **variables: str) -> str:
    """What a refused set-up prints, but for make's own words."""
    before = sorted(folder.iterdir())
    arguments = ["make", "setup", *(f"{name}={value}" for name, value in variables.items())]
    done = subprocess.run(arguments, cwd=folder, text=True, capture_output=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode != 0
    assert sorted(folder.iterdir()) == before
    lines = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("make: ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_no_python(folder: Path) -> None:
    assert "python9 is missing: install Python 3.11 or later" in refused(folder, PYTHON="python9")


def test_an_old_python(folder: Path) -> None:
    old = program(folder, "old", "exit 1")
    assert "old is too old: install Python 3.11 or later" in refused(folder, PYTHON=old)


def test_no_venv(folder: Path) -> None:
    bare = program(folder, "bare", 'case "$2" in *venv*) exit 1;; esac')
    assert "has no venv: install it (Debian: apt-get install python3-venv)" in refused(folder, PYTHON=bare)


def test_no_compiler(folder: Path) -> None:
    assert "no C++20 compiler (g++-1): install one" in refused(folder, CXX="g++-1")
