"""Wheel, sdist and incremental builds."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

import attnzoo

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
NOT_SOURCES = shutil.ignore_patterns(
    ".*", "build", "dist", "runs", "*.egg-info", "*.so", "_build.json", "__pycache__", "shared"
)


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command without PYTHONPATH, which could lead to this checkout."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PYTHONPATH": "", **environment},
    )


def build(source: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py as the build backend does, with the installed torch."""
    return run(sys.executable, "setup.py", *arguments, cwd=source, **environment)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh copy of the sources, with symlinks and without build outputs."""
    copy = tmp_path_factory.mktemp("fresh") / "attnzoo"
    shutil.copytree(ROOT, copy, ignore=NOT_SOURCES, symlinks=True)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = run(
        sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", folder, ".",
        cwd=source, ATTNZOO_CUDA="0",
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_is_abi3_and_has_the_data_files(wheel):
    assert "-cp311-abi3-linux" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert "attnzoo/ops/_C.abi3.so" in names
    assert "attnzoo/py.typed" in names
    assert f"-{attnzoo.__version__}-" in wheel.name
    for folder, target in (
        ("experiments", "attnzoo/experiments"),
        ("attnzoo/models/presets", "attnzoo/models/presets"),
    ):
        files = [path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.yaml")]
        assert files
        assert {f"{target}/{file}" for file in files} <= set(names)
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "attnzoo").rglob("templates/*")}
    assert len(templates) > 3
    assert templates <= set(names)


def test_library_uses_only_the_stable_abi(wheel, tmp_path):
    if shutil.which("readelf") is None:
        pytest.skip("NOT TESTED HERE: needs readelf (binutils)")
    zipfile.ZipFile(wheel).extract("attnzoo/ops/_C.abi3.so", tmp_path)
    library = tmp_path / "attnzoo" / "ops" / "_C.abi3.so"
    needed = run("readelf", "-d", library, cwd=tmp_path).stdout
    assert "libtorch_cpu.so" in needed
    assert "libtorch_python" not in needed
    symbols = run("readelf", "-Ws", "--dyn-syms", library, cwd=tmp_path).stdout
    undefined = [line.split()[-1] for line in symbols.splitlines() if " UND " in line]
    assert any(name.startswith("aoti_torch_") for name in undefined)
    assert not [name for name in undefined if name.startswith(("_ZN2at", "_ZN3c10", "_ZNK2at", "_ZNK3c10", "Py"))]


def test_wheel_works_in_a_new_environment_from_any_folder(wheel, tmp_path):
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    installed = run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    # use the dependencies of this environment, but not its editable install
    (site_packages,) = home.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    script = """
import json, torch, attnzoo
from pathlib import Path
from attnzoo import ops
value = torch.rand(1, 6, 2, 4)
output = ops.ms_deform_attn(value, ((2, 3),), torch.rand(1, 3, 2, 1, 2, 2), torch.rand(1, 3, 2, 1, 2))
package = Path(attnzoo.__file__).parent
experiments = len(list((package / "experiments").rglob("*.yaml")))
print(json.dumps([str(package), list(output.shape), ops.backends(), experiments]))
"""
    result = run(python, "-W", "error", "-c", script, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    package, shape, backends, experiments = json.loads(result.stdout)
    assert Path(package) == site_packages / "attnzoo"
    assert shape == [1, 3, 8]
    assert backends["cpu"] == "available"
    assert backends["cuda"] == "not built: disabled by ATTNZOO_CUDA=0"
    assert experiments > 0
    small = ["data.dataset.train_images=12", "data.dataset.val_images=4", "train.steps=1", "sweep.seeds=[0]"]
    trained = run(python, "-m", "attnzoo.run", "experiments/ablate_points.yaml", *small, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "runs" / "ablate_points" / "comparison.csv").read_text().count("\n") == 4


def test_sdist_has_the_files_of_a_build(source, tmp_path):
    made = build(source, "-q", "sdist", "-d", tmp_path, ATTNZOO_CUDA="0")
    assert made.returncode == 0, made.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    for folder, kind in (("csrc", "*.*"), ("experiments", "*.yaml"), ("attnzoo", "*.py")):
        assert {str(path.relative_to(source)) for path in (source / folder).rglob(kind) if path.is_file()} <= names
    assert {"setup.py", "pyproject.toml", "LICENSE"} <= names


def test_second_build_compiles_only_sources_with_changed_headers(source, wheel, tmp_path):
    """With only a compiler on PATH: ninja is found next to Python."""
    for tool in ("c++", "g++", "as", "ld"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    command = ("build_ext", "--build-lib", tmp_path / "lib")
    again = build(source, *command, ATTNZOO_CUDA="0", PATH=str(tmp_path))
    assert again.returncode == 0, again.stderr
    assert "no work to do" in again.stdout
    (source / "csrc" / "ms_deform_attn" / "problem.h").touch()
    (plan,) = source.glob("build/*/build.ninja")
    ninja = Path(sysconfig.get_path("scripts"), "ninja")
    planned = run(ninja, "-n", "-v", cwd=plan.parent).stdout
    compiled = {word for word in planned.split() if word.endswith(".cpp")}
    assert compiled == {str(source / "csrc" / "ms_deform_attn" / "cpu.cpp")}


def test_missing_compiler_gives_a_one_line_error(source, tmp_path):
    failed = build(source, "-q", "build_ext", "--build-lib", tmp_path, ATTNZOO_CUDA="0", CXX="no-such-compiler")
    assert failed.returncode != 0
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("attnzoo: no C++20")]
    assert "no-such-compiler" in line
    assert "Traceback" not in failed.stderr


FALLBACK = """
import warnings, torch
from attnzoo import ops
from attnzoo.ops import reference
inputs = torch.rand(1, 6, 2, 4), ((2, 3),), torch.rand(1, 3, 2, 1, 2, 2), torch.rand(1, 3, 2, 1, 2)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    output = ops.ms_deform_attn(*inputs)
assert torch.equal(output, reference.ms_deform_attn(*inputs))
print(ops.kernels("cpu"), *(warning.message for warning in caught), sep="\\n")
"""


def test_without_a_compiler_pip_says_so_and_the_reference_runs(source, tmp_path):
    """pip shows what setup.py prints with -v, and the name of the wheel always."""
    pip = (sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps", "-w", tmp_path, ".")
    copy = tmp_path / "source"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("build", "*.egg-info"), symlinks=True)
    built = run(*pip, cwd=copy, ATTNZOO_CUDA="", PATH=str(tmp_path))
    assert built.returncode == 0, built.stderr
    message = "the operators are not compiled and run in plain PyTorch, slowly: no C++20 compiler (c++): install one"
    assert message in built.stdout + built.stderr
    assert f"attnzoo-{attnzoo.__version__}-py3-none-any.whl" in built.stdout
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    used = run(sys.executable, "-P", "-c", FALLBACK, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert used.returncode == 0, used.stderr
    kernels, warning = used.stdout.splitlines()
    assert kernels == "reference"
    assert warning.startswith("attnzoo: ms_deform_attn on cpu runs the slow reference: the compiled library is missing")
    required = build(copy, "-q", "bdist_wheel", "-d", tmp_path / "none", ATTNZOO_COMPILE="1", PATH=str(tmp_path))
    assert required.returncode != 0
    assert required.stderr.splitlines()[-1].startswith("attnzoo: no C++20 compiler (c++)")
    assert not (tmp_path / "none").exists()


def test_missing_cuda_is_an_error_only_if_requested(source, tmp_path):
    without = {"CUDA_HOME": "", "CUDA_PATH": "", "PATH": "/nowhere"}
    requested = build(source, "-q", "build_ext", "--build-lib", tmp_path, ATTNZOO_CUDA="1", **without)
    assert requested.returncode != 0
    assert "ATTNZOO_CUDA=1 requires the CUDA operators, but nvcc was not found" in requested.stderr
    assert "Traceback" not in requested.stderr
    wrong = build(source, "-q", "build_ext", "--build-lib", tmp_path, ATTNZOO_CUDA="yes")
    assert "ATTNZOO_CUDA='yes', expected 0 or 1" in wrong.stderr


FAKE_GPU = """
import torch
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_capability = lambda device=None: (9, 0)
"""
FAKE_NVCC = """#!/bin/sh
case "$*" in
*--dryrun*) echo "#$ TOP=$(dirname "$(dirname "$(realpath "$0")")")" >&2 ;;
*--version*) echo "Cuda compilation tools, release VERSION, V0" ;;
*) COMPILE ;;
esac
"""
FAILS = 'echo "nvcc fatal: this one compiles nothing" >&2; exit 1'
MAKES_EMPTY_OBJECTS = 'while [ "$1" != -o ]; do shift; done; exec c++ -x c++ -c /dev/null -o "$2"'
CUDA_TORCH = pytest.mark.skipif(torch.version.cuda is None, reason="NOT TESTED HERE: needs a torch built for CUDA")


@pytest.fixture
def bare(source: Path, tmp_path: Path) -> Path:
    """A copy with empty source files, for tests of setup.py itself."""
    copy = tmp_path / "bare"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("build", "csrc"), symlinks=True)
    (copy / "csrc" / "one").mkdir(parents=True)
    for name in ("cpu.cpp", "cuda.cu"):
        (copy / "csrc" / "one" / name).touch()
    return copy


def fake_toolkit(folder: Path, compile_command: str) -> Path:
    """A CUDA toolkit with the layout of NVIDIA's pip packages, whose nvcc runs `compile_command`."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(FAKE_NVCC.replace("VERSION", torch.version.cuda).replace("COMPILE", compile_command))
    nvcc.chmod(0o755)
    (folder / "lib").mkdir()
    runtime = ("-x", "c++", os.devnull, "-shared", "-Wl,-soname,libcudart.so.13", "-o", folder / "lib/libcudart.so.13")
    assert run("c++", *runtime, cwd=folder).returncode == 0
    return folder


@CUDA_TORCH
def test_pip_cudart_is_linked_by_its_full_name(bare, tmp_path):
    machine = {"CUDA_HOME": str(fake_toolkit(tmp_path / "cuda", MAKES_EMPTY_OBJECTS)), "ATTNZOO_CUDA": "1"}
    made = build(bare, "-q", "build_ext", "--build-lib", tmp_path / "lib", **machine)
    assert made.returncode == 0, made.stderr
    assert json.loads((tmp_path / "lib" / "attnzoo" / "ops" / "_build.json").read_text())["cuda"].startswith("for ")


@CUDA_TORCH
def test_failed_cuda_build_prints_one_line_and_fails_only_if_requested(bare, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FAKE_GPU)
    cuda = fake_toolkit(tmp_path / "cuda", FAILS)
    machine = {"PYTHONPATH": str(tmp_path / "site"), "CUDA_HOME": str(cuda), "ATTNZOO_CUDA_ARCHS": ""}
    tried = build(bare, "-q", "build_ext", "--build-lib", tmp_path / "tried", ATTNZOO_CUDA="", **machine)
    assert tried.returncode == 0, tried.stderr
    (line,) = [line for line in tried.stderr.splitlines() if line.startswith("attnzoo: ")]
    assert "building without CUDA operators: the CUDA build failed" in line
    assert "Traceback" not in tried.stderr
    assert (tmp_path / "tried" / "attnzoo" / "ops" / "_C.abi3.so").is_file()
    reason = json.loads((tmp_path / "tried" / "attnzoo" / "ops" / "_build.json").read_text())["cuda"]
    assert reason.startswith("the CUDA build failed")
    requested = build(bare, "-q", "build_ext", "--build-lib", tmp_path / "requested", ATTNZOO_CUDA="1", **machine)
    assert requested.returncode != 0
    assert "attnzoo: the CUDA build failed" in requested.stderr
    assert "Traceback" not in requested.stderr


OTHER_TORCH = "2.13.0"
TORCH_ALONE = """
import json, sys
import torch
from attnzoo import attention, ops
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Slot

value = torch.rand(2, 6, 2, 8, dtype=torch.float64, requires_grad=True)
locations = torch.rand(2, 3, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
weights = torch.rand(2, 3, 2, 1, 2, dtype=torch.float64, requires_grad=True)
inputs = (value, locations, weights)
call = lambda v, x, a: ops.ms_deform_attn(v, ((2, 3),), x, a)
assert torch.autograd.gradcheck(call, inputs)
torch.library.opcheck(torch.ops.attnzoo.ms_deform_attn.default, (value, [2, 3], locations, weights))
torch.compile(call, fullgraph=True, backend="aot_eager")(*inputs).sum().backward()

layout = Layout.from_masks([torch.zeros(2, 4, 5, dtype=torch.bool)])
memory = Pyramid(torch.randn(2, 20, 32), layout)
trained = []
for name in attention.names():
    try:
        module = attention.build(name, Slot(dim=32, heads=4))
    except UserError as error:
        assert (name, str(error)) == ("dcn", "attention dcn needs torchvision: pip install torchvision")
        continue
    module(memory.as_queries(), memory).square().mean().backward()
    trained.append(name)
others = [package for package in ("torchvision", "timm", "numpy") if package in sys.modules]
print(json.dumps([torch.__version__, ops.backends()["cpu"], trained, others]))
"""


@pytest.mark.long  # downloads another torch
def test_operators_and_attentions_work_with_only_torch_of_another_version(wheel, tmp_path):
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    for requirements in (f"torch=={OTHER_TORCH}", "einops"), ("--no-deps", wheel):
        installed = run(python, "-m", "pip", "install", "-q", *requirements, cwd=tmp_path)
        assert installed.returncode == 0, installed.stderr
    result = run(python, "-c", TORCH_ALONE, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    version, cpu, trained, others = json.loads(result.stdout.splitlines()[-1])
    assert version.startswith(OTHER_TORCH)
    assert cpu == "available"
    assert {"dense", "deform", "ms_deform"} <= set(trained)
    assert others == []
