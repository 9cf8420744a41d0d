"""What a run or a measurement ran on: recorded beside its results, never part of them."""

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attnzoo

if TYPE_CHECKING:
    import torch

PACKAGES = ("attnzoo", "torch", "torchvision", "timm", "numpy", "scipy", "pycocotools", "omegaconf", "tensorboard")
SOURCE = "source.json"  # in a snapshot of the code


def version(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def source(root: Path | None = None) -> dict[str, str] | None:
    """Commit and uncommitted changes of the code that runs, or of that in `root`.

    A snapshot of the code brings them along; None where the package comes from neither that nor a git checkout.
    """
    root = root or Path(attnzoo.__file__).parents[1]
    if (root / SOURCE).exists():
        return dict(json.loads((root / SOURCE).read_text()))
    if not (root / ".git").exists():
        return None
    try:
        return {"commit": _git(root, "rev-parse", "HEAD").strip(), "diff": _git(root, "diff", "HEAD")}
    except (OSError, subprocess.CalledProcessError) as error:
        return {"commit": f"unknown: {error}", "diff": ""}


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True).stdout


def describe(device: "torch.device", world: int) -> dict[str, Any]:
    """Versions, machine, threads, and the state of the source where it is a git checkout."""
    import torch

    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda,
        "processes": world,
        "source": source(),
    }
