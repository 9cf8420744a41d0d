"""A tiny run of a probe."""

from pathlib import Path

from attnzoo.rundir.folder import RunFolder
from support.engine import tiny_run

TINY = """
name: tiny_probe
task: probe
seed: 3
device: cpu
data:
  dataset: {name: read, val_maps: 3}
  batch_size: 2
model: {dim: 16, heads: 2, hidden: 16}
train:
  steps: 8
  log_every: 2
  eval_every: 4
  checkpoint_every: 3
  ema: 0.9
  optimizer: {lr: 1e-3}
"""


def tiny_probe(folder: Path, **changes: str) -> RunFolder:
    return tiny_run(folder, TINY, **changes)
