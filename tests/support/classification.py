"""A tiny run that trains a classifier."""

from pathlib import Path

from attnzoo.rundir.folder import RunFolder
from support.engine import tiny_run

TINY = """
name: tiny_classifier
task: classification
seed: 3
device: cpu
data:
  dataset: {name: digits, image_size: 32, sizes: [12, 20], train_images: 24, val_images: 10}
  augment: {name: photometric}
  batch_size: 4
  mixup: 0.8
  cutmix: 1.0
model:
  image_size: 32
  stage1: {dim: 8, depth: 2, heads: 2, first: {window: 4}, second: {window: 4, shift: 2}}
  stage2: {dim: 16, depth: 1, heads: 2, first: {name: dat}}
  stage3: {depth: 0}
  stage4: {depth: 0}
  drop_path: 0.2
  label_smoothing: 0.1
train:
  steps: 12
  log_every: 3
  eval_every: 6
  checkpoint_every: 5
  ema: 0.9
  pictures: false
  optimizer: {lr: 1e-3}
"""


def tiny_classifier(folder: Path, **changes: str) -> RunFolder:
    return tiny_run(folder, TINY, **changes)
