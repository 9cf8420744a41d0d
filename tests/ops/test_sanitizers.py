"""The tests of the CPU kernels pass under the address and undefined-behaviour sanitizers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long]

ROOT = Path(__file__).parents[2]
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=undefined"
# Python and torch never free some of what they allocate, and torch's own libraries are not instrumented.
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with attnzoo, built with instrumented kernels."""
    folder = tmp_path_factory.mktemp("sanitized")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "*.so", "__pycache__", "shared")
    shutil.copytree(ROOT, source, ignore=ignored, symlinks=True)
    # -O1 takes three times as long, and may optimise undefined behaviour away.
    environment = os.environ | {"ATTNZOO_CUDA": "0", "CFLAGS": f"{SANITIZE} -g1 -O0", "LDFLAGS": SANITIZE}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    built = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return source


def run(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    sanitizers = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = os.environ | OPTIONS | {"LD_PRELOAD": " ".join(sanitizers), "PYTHONPATH": str(package)}
    # -P: do not import the package from the current folder
    return subprocess.run(
        [sys.executable, "-P", *arguments], cwd=package, env=environment, capture_output=True, text=True
    )


def test_instrumented_library_is_loaded(package):
    script = "from attnzoo.ops import library; print(library.load() or library.LIBRARY)"
    result = run(package, "-c", script)
    assert result.stdout.strip() == str(package / "attnzoo" / "ops" / "_C.abi3.so"), result.stderr
    symbols = subprocess.run(["nm", "-D", result.stdout.strip()], capture_output=True, text=True, check=True).stdout
    assert "__asan_report_load4" in symbols
    assert "__ubsan_handle_" in symbols


def test_kernels_of_every_instruction_set(package):
    names = ("values", "fused", "simd", "deform_kv_attn", "deform_kv_attn_simd")
    tests = [f"tests/ops/test_{name}.py" for name in names]
    # Without optimisation there is no FMA contraction, and the instruction sets may agree bit for bit.
    selection = ["-m", "not slow", "-k", "not different_kernels and not selects_the_kernels"]
    result = run(package, "-m", "pytest", *tests, *selection, "-x", "-q", "-p", "no:cacheprovider")
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
    assert "runtime error" not in result.stderr
