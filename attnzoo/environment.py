"""The environment of a run or a benchmark: machine, package versions, git state, hash of the sources. Recorded only."""

import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attnzoo

if TYPE_CHECKING:
    import torch

PACKAGES = ("attnzoo", "torch", "torchvision", "timm", "numpy", "scipy", "pycocotools", "omegaconf", "tensorboard")
GIT_STATE = "source.json"  # in a snapshot of the code
# What a run's results depend on besides its config: the modules that train it, and csrc/ as it was compiled.
RESULT_SOURCES = ("attention", "data", "engine", "geometry.py", "models", "ops", "registry.py", "worker")


def version(package: str) -> str | None:
    """The installed version of a distribution, or None; of attnzoo that of the code, which may be newer."""
    if package == "attnzoo":
        return attnzoo.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def git_state(root: Path | None = None) -> dict[str, str] | None:
    """Commit and uncommitted changes of the running code, or of that in `root`.

    A snapshot of the code holds them in a file; None outside of snapshots and git checkouts.
    """
    root = root or Path(attnzoo.__file__).parents[1]
    if (root / GIT_STATE).exists():
        return dict(json.loads((root / GIT_STATE).read_text(encoding="utf-8")))
    if not (root / ".git").exists():
        return None
    try:
        return {"commit": _git(root, "rev-parse", "HEAD").strip(), "diff": _git(root, "diff", "HEAD")}
    except (OSError, subprocess.CalledProcessError) as error:
        return {"commit": f"unknown: {error}", "diff": ""}


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace").stdout


def csrc_hash(root: Path) -> str:
    """Hash, 8 hexadecimal digits, of the sources of the compiled operators in a checkout; setup.py records the same."""
    return _hash_files((path for path in (root / "csrc").rglob("*") if path.is_file()), root).hexdigest()[:8]


def _hash_files(paths: Iterable[Path], root: Path) -> "hashlib._Hash":
    sha = hashlib.sha256()
    for path in sorted(paths):
        sha.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        sha.update(path.read_bytes())
    return sha


def sources_hash() -> str:
    """Hash, 8 hexadecimal digits, of the sources that affect results. Of csrc/, the state that was compiled counts."""
    package = Path(attnzoo.__file__).parent
    files = [path for name in RESULT_SOURCES for path in (package / name).rglob("*.py")]
    files += [package / name for name in RESULT_SOURCES if name.endswith(".py")]
    sha = _hash_files(files, package)
    build = package / "ops" / "_build.json"
    compiled = json.loads(build.read_text(encoding="utf-8")).get("csrc") if build.exists() else None
    sha.update(f"csrc\0{compiled}".encode())
    return sha.hexdigest()[:8]


def is_distributed_launch() -> bool:
    """Whether this is one of several processes that torchrun or srun started."""
    return "RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


@cache
def loaded_sources() -> str:
    """`sources_hash` at the first call of this process: modules stay as they were imported when files change."""
    return sources_hash()


def result_environment(device: "torch.device", operators: str) -> dict[str, str]:
    """What a run's results depend on besides its config; `operators` names the kernels that run on the device."""
    import torch

    return {
        "sources": loaded_sources(),
        "torch": torch.__version__,
        "operators": operators,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": str(torch.get_num_threads()),
    }


def collect_environment(device: "torch.device", processes: int) -> dict[str, Any]:
    """Command, versions, machine, threads and git state of this process."""
    import torch

    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda,
        "processes": processes,
        "source": git_state(),
    }
