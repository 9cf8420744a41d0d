"""What a measurement or a run ran on."""

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

import attnzoo

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
