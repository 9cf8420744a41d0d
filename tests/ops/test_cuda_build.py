"""The CUDA kernels compile for every supported architecture, without register spills in the main paths."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import ptxas
from support.ptxas import ARCHS, MAIN_PATH, Usage

SAMPLE = """ptxas info    : Compiling entry function 'k' for 'sm_90'
ptxas info    : Function properties for k
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 63 registers, used 1 barriers, 8 bytes cumulative stack size, 4096 bytes smem
ptxas info    : Compile time = 1.0 ms
ptxas info    : Compiling entry function 'k' for 'sm_80'
ptxas info    : Function properties for k
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 0 barriers, 376 bytes cmem[0]
"""


def test_compiler_report_is_parsed():
    if shutil.which("c++filt") is None:
        pytest.skip("NOT TESTED HERE: needs c++filt (binutils)")
    first, second = ptxas.read_usage(SAMPLE)
    assert (first.arch, first.registers, first.spilled, first.shared) == ("80", 24, 0, 0)
    assert (second.arch, second.registers, second.stack, second.spilled, second.shared) == ("90", 63, 8, 16, 4096)
    assert "| `k` | 24 | 63 | 16 | 8 | 4096 |" in ptxas.report([first, second], "nvcc")


def test_short_kernel_names():
    ours = "attnzoo::ms_deform_attn"
    signature = (
        f"void {ours}::forward_kernel<c10::Half, true, {ours}::UnfusedSamples<float> >({ours}::ForwardArgs<float>)"
    )
    assert ptxas.short_name(signature) == "forward_kernel<Half, true, UnfusedSamples<float>>"
    assert MAIN_PATH.match("forward_kernel<Half, true, UnfusedSamples<float>>")
    assert not MAIN_PATH.match("forward_kernel<Half, false, UnfusedSamples<float>>")
    ours = "attnzoo::deform_kv_attn"
    assert ptxas.short_name(f"void {ours}::grad_key_value_kernel<float, 32>({ours}::BackwardArgs<float>)") == (
        "grad_key_value_kernel<float, 32>"
    )
    assert MAIN_PATH.match("grad_key_value_kernel<float, 32>")
    assert not MAIN_PATH.match("grad_key_value_kernel<float, 128>")


@dataclass(frozen=True)
class Built:
    """A build for all architectures: the package folder and the compiler log."""

    package: Path
    log: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("build")
    try:
        return Built(folder / "lib", ptxas.compile_verbosely(folder))
    except ptxas.NoCompilerError:
        hint = "needs nvcc (pip install -c constraints.txt cuda-toolkit[nvcc,cccl])"
        if os.environ.get("ATTNZOO_REQUIRE_NVCC"):
            pytest.fail(hint)
        pytest.skip(f"NOT TESTED HERE: {hint}")


@pytest.fixture(scope="module")
def usages(built: Built) -> list[Usage]:
    return ptxas.read_usage(built.log)


@pytest.mark.slow
def test_main_path_does_not_spill_registers(usages):
    main_path = [usage for usage in usages if MAIN_PATH.match(usage.kernel)]
    # directions, unfused and fused samples with weights of both types; forward and both passes backward, dtypes, widths
    assert len(main_path) == (2 * 2 * (1 + 2 + 2) + 3 * 3 * 2) * len(ARCHS)
    # these launch bounds were the fastest on a GPU: docs/results/gpu.md
    chosen = [usage for usage in main_path if usage.kernel.startswith("forward_kernel") and "Unfused" in usage.kernel]
    assert len(chosen) == 5 * len(ARCHS)
    assert all(usage.spilled <= 64 for usage in chosen)
    assert [usage for usage in main_path if usage not in chosen and (usage.spilled or usage.stack)] == []


@pytest.mark.slow
def test_published_report_is_up_to_date(built, usages):
    published = ptxas.REPORT.read_text()
    compiler = ptxas.nvcc_version(built.log)
    hint = "docs/results/cuda-kernels.md is out of date: python tests/support/ptxas.py"
    assert all(f"`{usage.kernel}`" in published for usage in usages), hint
    if compiler in published:  # register allocation depends on the compiler
        assert ptxas.report(usages, compiler) == published, hint


@pytest.mark.slow
def test_library_loads_without_a_gpu(built, tmp_path):
    shutil.copytree(ptxas.ROOT / "attnzoo", tmp_path / "attnzoo", ignore=ptxas.NOT_SOURCES)
    shutil.copytree(built.package / "attnzoo", tmp_path / "attnzoo", dirs_exist_ok=True)
    script = "import json; from attnzoo import ops; from attnzoo.ops import library;"
    script += "print(json.dumps([ops.backends(), library.has_kernel('cuda')]))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert loaded.returncode == 0, loaded.stderr
    backends, compiled = json.loads(loaded.stdout)
    assert compiled
    assert backends["cpu"] == "available"
    assert backends["cuda"] == "built (for 8.0;9.0;10.0), but no GPU is visible"
