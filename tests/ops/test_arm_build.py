"""The CPU kernels compile for 64-bit Arm, where the portable vector type becomes NEON."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COMPILER = "aarch64-linux-gnu-g++"
FLAGS = ["-std=c++20", "-fsyntax-only", "-fvisibility=hidden", "-Wall", "-Werror"]
SOURCES = sorted(path.relative_to(ROOT) for path in ROOT.glob("csrc/*/cpu*.cpp"))


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_compiles_for_arm(source: Path) -> None:
    if shutil.which(COMPILER) is None:
        if os.environ.get("ATTNZOO_REQUIRE_ARM"):
            pytest.fail(f"no {COMPILER}, and ATTNZOO_REQUIRE_ARM is set")
        pytest.skip(f"NOT TESTED HERE: needs {COMPILER} (Debian: apt-get install g++-aarch64-linux-gnu)")
    includes = [f"-I{path}" for path in include_paths()]
    command = [COMPILER, *FLAGS, "-DTORCH_TARGET_VERSION=0x020b000000000000", *includes, str(source)]
    compiled = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr
