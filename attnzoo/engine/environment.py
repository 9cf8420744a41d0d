"""What a run ran on: recorded beside its results, never part of them."""

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import attnzoo

SOURCE = "source.json"  # in a snapshot of the code
PACKAGES = ("attnzoo", "torch", "torchvision", "timm", "numpy", "scipy", "pycocotools", "omegaconf", "tensorboard")


def describe(device: torch.device, world: int) -> dict[str, Any]:
    """Versions, machine, threads, and the state of the source where it is a git checkout."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda,
        "processes": world,
        "source": source(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
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
