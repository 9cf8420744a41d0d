"""Builds csrc/ into attnzoo/ops/_C.abi3.so; everything else is in pyproject.toml.

The CUDA kernels are built if nvcc, a CUDA torch and a GPU are found; with ATTNZOO_CUDA=1 also without a GPU, and then a
failure is an error; with ATTNZOO_CUDA=0 never. The architectures are ATTNZOO_CUDA_ARCHS (same format as
TORCH_CUDA_ARCH_LIST), or those of the visible GPUs, or DEFAULT_ARCHS.

Without a C++20 compiler nothing is compiled: the operators then run in plain PyTorch. With ATTNZOO_COMPILE=1, or if CXX
names a compiler that does not work, that is an error; with ATTNZOO_COMPILE=0 nothing is compiled in any case.
"""

import hashlib
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
TORCH_TARGET_VERSION = "0x020b000000000000"  # torch 2.11, the minimum version of the library
ROOT = Path(__file__).parent


def find_cuda_home() -> str | None:
    """The CUDA toolkit of nvcc, as reported by nvcc itself, because the one on PATH may be a link or a wrapper."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    pip_nvcc = Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin")  # from the nvidia-cuda-nvcc package
    folders = [*(os.path.join(home, "bin") for home in homes), os.environ.get("PATH", ""), str(pip_nvcc)]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(folders))
    if nvcc is None:
        return None
    plan = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    return os.path.realpath(top[1]) if top else None


def cuda_disabled_reason(home: str | None) -> str | None:
    """Why the CUDA kernels are not built, in one line; None if they are."""
    requested = os.environ.get("ATTNZOO_CUDA", "")
    if requested not in ("", "0", "1"):
        sys.exit(f"attnzoo: ATTNZOO_CUDA={requested!r}, expected 0 or 1")
    if requested == "0":
        return "disabled by ATTNZOO_CUDA=0"
    if home is None:
        reason = "nvcc was not found"
    elif torch.version.cuda is None:
        reason = f"torch {torch.__version__} is built without CUDA"
    elif not requested and not torch.cuda.is_available():
        return "no GPU is visible (ATTNZOO_CUDA=1 builds without one)"
    else:
        return None
    if requested:
        sys.exit(f"attnzoo: ATTNZOO_CUDA=1 requires the CUDA operators, but {reason}")
    return reason


def choose_archs() -> str:
    """Compute capabilities to build for, such as "8.0;9.0"."""
    archs = os.environ.get("ATTNZOO_CUDA_ARCHS") or os.environ.get("TORCH_CUDA_ARCH_LIST")
    if archs:
        return archs
    visible = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return ";".join(f"{major}.{minor}" for major, minor in sorted(visible)) or DEFAULT_ARCHS


CUDA_HOME = find_cuda_home()
CUDA_DISABLED = cuda_disabled_reason(CUDA_HOME)
ARCHS = "" if CUDA_DISABLED else choose_archs()
if CUDA_HOME and not CUDA_DISABLED:
    # torch reads CUDA_HOME when it is imported and TORCH_CUDA_ARCH_LIST when it compiles
    os.environ.update(CUDA_HOME=CUDA_HOME, TORCH_CUDA_ARCH_LIST=ARCHS)
# ninja, a build requirement, is installed next to this Python, whose folder need not be on PATH
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])

from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402


def prefix_map_flags() -> list[str]:
    """Flags that make source paths in the library relative to the repository or to torch."""
    torch_folder = Path(torch.__file__).absolute().parent
    return [f"-ffile-prefix-map={ROOT.absolute()}/=", f"-ffile-prefix-map={torch_folder}/=torch/"]


def make_extension(cuda: bool) -> Extension:
    """The library with all operators, with or without the CUDA kernels."""
    # keep the user's -O level from CFLAGS
    level = [] if re.search(r"(^|\s)-O", os.environ.get("CFLAGS", "")) else ["-O3"]
    prefix_map = prefix_map_flags()
    flags = ["-std=c++20", *level, "-fvisibility=hidden", "-Wall", *prefix_map]
    patterns = ["*/*.cpp", "*/*.cu"] if cuda else ["*/*.cpp"]
    sources = sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in (ROOT / "csrc").glob(pattern))
    macros = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)]
    if cuda:
        macros.append(("USE_CUDA", "1"))
        # -Xcompiler splits at commas and, unless quoted, at spaces
        host_flags = [word for flag in prefix_map for word in ("-Xcompiler", '"{}"'.format(flag.replace(",", r"\,")))]
        compile_args = {"cxx": flags, "nvcc": ["-std=c++20", "-O3", *host_flags]}
        extension = CUDAExtension(
            "attnzoo.ops._C", sources, define_macros=macros, extra_compile_args=compile_args, py_limited_api=True
        )
        link_pip_cudart(extension)
        return extension
    return CppExtension(
        "attnzoo.ops._C", sources, define_macros=macros, extra_compile_args={"cxx": flags}, py_limited_api=True
    )


def link_pip_cudart(extension: Extension) -> None:
    """Link libcudart.so.13 by its full name: the pip package has no libcudart.so, which -lcudart looks for."""
    names = [path.name for path in Path(CUDA_HOME or "").glob("lib*/libcudart.so*")]
    if names and "libcudart.so" not in names:
        extension.libraries[extension.libraries.index("cudart")] = f":{names[0]}"


class BuildOperators(BuildExtension):
    """Builds incrementally; writes to _build.json whether CUDA was built, for which architectures, and csrc's hash."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # persistent, unlike the default of an editable install, so that ninja builds incrementally
        self.build_temp = str(ROOT / "build" / f"{'cpu' if CUDA_DISABLED else 'cuda'}-torch-{torch.__version__}")
        self.force = True

    def build_extensions(self) -> None:
        no_cuda = CUDA_DISABLED or self.build_with_cuda()
        if no_cuda:
            print(f"attnzoo: building without CUDA operators: {no_cuda}", file=sys.stderr)
            super().build_extensions()
        build_info = Path(self.get_ext_fullpath("attnzoo.ops._C")).with_name("_build.json")
        build_info.write_text(json.dumps({"cuda": no_cuda or f"for {ARCHS}", "csrc": csrc_hash()}) + "\n")

    def build_with_cuda(self) -> str | None:
        """Build all kernels. If that fails, change `extensions` to the CPU kernels and return the reason."""
        try:
            super().build_extensions()
        except (RuntimeError, CompileError, LinkError) as error:
            reason = f"the CUDA build failed: {str(error).splitlines()[0]} (pip install -v shows more)"
            if os.environ.get("ATTNZOO_CUDA") == "1":
                sys.exit(f"attnzoo: {reason}")
            self.build_temp = self.build_temp.replace("cuda-torch", "cpu-torch")
            cpu_only = vars(make_extension(cuda=False)) | self.setuptools_attrs(self.extensions[0])
            vars(self.extensions[0]).update(cpu_only)
            return reason
        return None

    @staticmethod
    def setuptools_attrs(extension: Extension) -> dict[str, object]:
        """Attributes that setuptools has set on the extension, which do not depend on its sources."""
        return {key: value for key, value in vars(extension).items() if key.startswith("_")}

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        build_info = Path(self.build_lib, "attnzoo", "ops", "_build.json")
        shutil.copyfile(build_info, ROOT / "attnzoo" / "ops" / build_info.name)


def csrc_hash() -> str:
    """Hash, 8 hexadecimal digits, of the sources of the library."""
    sha = hashlib.sha256()
    for path in sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file()):
        sha.update(f"{path.relative_to(ROOT).as_posix()}\0{path.stat().st_size}\0".encode())
        sha.update(path.read_bytes())
    return sha.hexdigest()[:8]


def not_compiled_reason() -> str | None:
    """Why nothing is compiled, in one line; None if the operators are. Exits if they have to be and cannot be."""
    requested = os.environ.get("ATTNZOO_COMPILE", "")
    if requested not in ("", "0", "1"):
        sys.exit(f"attnzoo: ATTNZOO_COMPILE={requested!r}, expected 0 or 1")
    if requested == "0":
        return "disabled by ATTNZOO_COMPILE=0"
    compiler = os.environ.get("CXX", "c++")
    try:
        probe = [*compiler.split(), "-std=c++20", "-x", "c++", "-fsyntax-only", os.devnull]
        works = subprocess.run(probe, capture_output=True).returncode == 0
    except FileNotFoundError:
        works = False
    if works:
        return None
    reason = f"no C++20 compiler ({compiler}): install one (Debian: apt-get install g++) or name it in CXX"
    if requested or "CXX" in os.environ or os.environ.get("ATTNZOO_CUDA") == "1":
        sys.exit(f"attnzoo: {reason}")
    return reason


NOT_COMPILED = not_compiled_reason()
if NOT_COMPILED:
    print(f"attnzoo: the operators are not compiled and run in plain PyTorch, slowly: {NOT_COMPILED}", file=sys.stderr)
setup(
    ext_modules=[] if NOT_COMPILED else [make_extension(cuda=CUDA_DISABLED is None)],
    cmdclass={"build_ext": BuildOperators},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
