"""Builds csrc/ into attnzoo/ops/_C.abi3.so; everything else is in pyproject.toml.

The CPU kernels are always built. The CUDA kernels are built where nvcc, a CUDA torch and a GPU are found; with
ATTNZOO_CUDA=1 also without a GPU, and then a failure is an error; with ATTNZOO_CUDA=0 never. Targets are those in
ATTNZOO_CUDA_ARCHS (spelt as TORCH_CUDA_ARCH_LIST), or the visible GPUs, or DEFAULT_ARCHS.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.errors import CompileError, LinkError

try:
    import torch
except ImportError:
    sys.exit("attnzoo: torch is needed to build the operators: pip install torch, or leave out --no-build-isolation")

DEFAULT_ARCHS = "8.0;9.0;10.0+PTX"
TORCH_TARGET_VERSION = "0x020b000000000000"  # torch 2.11: the oldest that the library runs with
ROOT = Path(__file__).parent


def find_cuda_home() -> str | None:
    """The toolkit that nvcc belongs to. nvcc itself is asked, because the one on PATH may be a link or a wrapper."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    packaged = Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin")  # from the nvidia-cuda-nvcc package
    folders = [*(os.path.join(home, "bin") for home in homes), os.environ.get("PATH", ""), str(packaged)]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(folders))
    if nvcc is None:
        return None
    plan = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    return os.path.realpath(top[1]) if top else None


def why_no_cuda(home: str | None) -> str | None:
    """Why the CUDA kernels are not to be built, in one line; None where they are."""
    asked = os.environ.get("ATTNZOO_CUDA", "")
    if asked not in ("", "0", "1"):
        sys.exit(f"attnzoo: ATTNZOO_CUDA={asked!r}, expected 0 or 1")
    if asked == "0":
        return "ATTNZOO_CUDA=0 forbids it"
    if home is None:
        reason = "nvcc was not found"
    elif torch.version.cuda is None:
        reason = f"torch {torch.__version__} is built without CUDA"
    elif not asked and not torch.cuda.is_available():
        return "no GPU is visible (ATTNZOO_CUDA=1 builds without one)"
    else:
        return None
    if asked:
        sys.exit(f"attnzoo: ATTNZOO_CUDA=1 asks for the CUDA operators, but {reason}")
    return reason


def choose_archs() -> str:
    """Compute capabilities to build for, such as "8.0;9.0"."""
    chosen = os.environ.get("ATTNZOO_CUDA_ARCHS") or os.environ.get("TORCH_CUDA_ARCH_LIST")
    if chosen:
        return chosen
    visible = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return ";".join(f"{major}.{minor}" for major, minor in sorted(visible)) or DEFAULT_ARCHS


CUDA_HOME = find_cuda_home()
NO_CUDA = why_no_cuda(CUDA_HOME)
ARCHS = "" if NO_CUDA else choose_archs()
if CUDA_HOME and not NO_CUDA:
    # torch reads the first when it is imported and the second when it compiles.
    os.environ.update(CUDA_HOME=CUDA_HOME, TORCH_CUDA_ARCH_LIST=ARCHS)
# ninja, a build requirement, stands beside this Python, whose folder need not be on PATH
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])

from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402


def relative_paths() -> list[str]:
    """Flags that make messages of the library name source files by their place in the repository or in torch."""
    torch_folder = Path(torch.__file__).absolute().parent
    return [f"-ffile-prefix-map={ROOT.absolute()}/=", f"-ffile-prefix-map={torch_folder}/=torch/"]


def library(cuda: bool) -> Extension:
    """The one library that holds all operators, with or without the CUDA kernels."""
    # A level of optimisation in CFLAGS, which the compiler is given before these, has the last word.
    level = [] if re.search(r"(^|\s)-O", os.environ.get("CFLAGS", "")) else ["-O3"]
    paths = relative_paths()
    flags = ["-std=c++20", *level, "-fvisibility=hidden", "-Wall", *paths]
    patterns = ["*/*.cpp", "*/*.cu"] if cuda else ["*/*.cpp"]
    sources = sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in (ROOT / "csrc").glob(pattern))
    macros = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)]
    if cuda:
        macros.append(("USE_CUDA", "1"))
        # What nvcc hands on ends at a comma or, unless quoted, at a space.
        handed_on = [word for flag in paths for word in ("-Xcompiler", '"{}"'.format(flag.replace(",", r"\,")))]
        compile_args = {"cxx": flags, "nvcc": ["-std=c++20", "-O3", *handed_on]}
        extension = CUDAExtension(
            "attnzoo.ops._C", sources, define_macros=macros, extra_compile_args=compile_args, py_limited_api=True
        )
        link_the_packaged_runtime(extension)
        return extension
    return CppExtension(
        "attnzoo.ops._C", sources, define_macros=macros, extra_compile_args={"cxx": flags}, py_limited_api=True
    )


def link_the_packaged_runtime(extension: Extension) -> None:
    """The packaged toolkit has libcudart.so.13, but no libcudart.so, which -lcudart looks for."""
    names = [path.name for path in Path(CUDA_HOME or "").glob("lib*/libcudart.so*")]
    if names and "libcudart.so" not in names:
        extension.libraries[extension.libraries.index("cudart")] = f":{names[0]}"


class BuildOperators(BuildExtension):
    """Compiles what has changed since the last build, and records whether and for what CUDA was built."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # An editable install would compile in a throwaway folder; in a lasting one ninja knows what is up to date.
        self.build_temp = str(ROOT / "build" / f"{'cpu' if NO_CUDA else 'cuda'}-torch-{torch.__version__}")
        self.force = True

    def build_extensions(self) -> None:
        check_compiler()
        no_cuda = NO_CUDA
        if no_cuda is None:
            no_cuda = self.build_with_cuda()
        if no_cuda is not None:
            print(f"attnzoo: without CUDA operators: {no_cuda}", file=sys.stderr)
            super().build_extensions()
        self.record().write_text(json.dumps({"cuda": no_cuda or f"for {ARCHS}"}) + "\n")

    def build_with_cuda(self) -> str | None:
        """Build all kernels; returns why that failed, with `extensions` changed to the CPU kernels alone."""
        try:
            super().build_extensions()
        except (RuntimeError, CompileError, LinkError) as error:
            reason = f"the CUDA build failed: {str(error).splitlines()[0]} (pip install -v shows more)"
            if os.environ.get("ATTNZOO_CUDA") == "1":
                sys.exit(f"attnzoo: {reason}")
            self.build_temp = self.build_temp.replace("cuda-torch", "cpu-torch")
            vars(self.extensions[0]).update(vars(library(cuda=False)) | self.names(self.extensions[0]))
            return reason
        return None

    @staticmethod
    def names(extension: Extension) -> dict[str, object]:
        """What setuptools has noted about the extension's file, which does not change with its sources."""
        return {key: value for key, value in vars(extension).items() if key.startswith("_")}

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        built = Path(self.build_lib, "attnzoo", "ops", "_build.json")
        shutil.copyfile(built, ROOT / "attnzoo" / "ops" / built.name)

    def record(self) -> Path:
        return Path(self.get_ext_fullpath("attnzoo.ops._C")).with_name("_build.json")


def check_compiler() -> None:
    compiler = os.environ.get("CXX", "c++")
    try:
        probe = [*compiler.split(), "-std=c++20", "-x", "c++", "-fsyntax-only", os.devnull]
        works = subprocess.run(probe, capture_output=True).returncode == 0
    except FileNotFoundError:
        works = False
    if not works:
        sys.exit(
            f"attnzoo: no C++20 compiler ({compiler}): install one (Debian: apt-get install g++) or name it in CXX"
        )


setup(
    ext_modules=[library(cuda=NO_CUDA is None)],
    cmdclass={"build_ext": BuildOperators},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
