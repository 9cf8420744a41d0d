"""A sweep of two short runs, and its command line."""

import json
import subprocess
import sys
from pathlib import Path

from support.engine import TINY_SCENES, without_speed

SWEEP = """\
sweep:
  zip: {model.encoder.attention.points: [1, 2], model.decoder.attention.points: [1, 2]}
  seeds: [0]
  costs: false
jobs: 2
"""
TINY = TINY_SCENES + SWEEP


def write_tiny(folder: Path) -> Path:
    """tiny.yaml, and a plugin that cannot be imported."""
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    (folder / "broken.py").write_text("import no_such_library\n")
    return path


def sweep(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "attnzoo.run", "tiny.yaml", *arguments]
    return subprocess.run(command, text=True, capture_output=True, timeout=300)


def results(run: Path) -> list[dict[str, float]]:
    """The metrics of a run without its speed."""
    return [without_speed(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
