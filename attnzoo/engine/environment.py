"""What a run ran on: recorded beside its results, never part of them."""

import os
import platform
import socket
import sys
from typing import Any

import torch

from attnzoo.inspect.environment import cpu, source, version

PACKAGES = ("attnzoo", "torch", "torchvision", "timm", "numpy", "scipy", "pycocotools", "omegaconf", "tensorboard")


def describe(device: torch.device, world: int) -> dict[str, Any]:
    """Versions, machine, threads, and the state of the source where it is a git checkout."""
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
