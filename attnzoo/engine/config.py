"""Training options: optimiser, learning-rate schedule and loop."""

# ruff: noqa: RUF009 — the functions called in defaults return dataclasses.field

from dataclasses import dataclass, field
from typing import Literal

from attnzoo.schema.fields import BELOW_ONE, COUNT, FRACTION, NON_NEGATIVE, POSITIVE, SEED, number, numbers


@dataclass
class OptimizerConfig:
    name: str = "adamw"  # or any other of timm.optim
    lr: float = number(2e-4, POSITIVE)  # highest learning rate
    weight_decay: float = number(1e-4, NON_NEGATIVE)
    decay_1d: bool = True  # also decay biases and norms
    no_decay: list[str] = field(default_factory=list)  # substrings of the names of further parameters without decay
    # substring of a parameter name -> multiplier of lr; 0 keeps these parameters as they are
    lr_multipliers: dict[str, float] = field(default_factory=dict, metadata={"range": NON_NEGATIVE})


@dataclass
class ScheduleConfig:
    name: Literal["cosine", "step", "constant"] = "cosine"  # of the learning rate
    warmup: float = number(0.0, BELOW_ONE)  # fraction of all steps
    warmup_start_factor: float | None = number(None, FRACTION)  # first lr, as a fraction of lr; null: 1 / warm-up steps
    min_lr_ratio: float = number(0.0, FRACTION)  # cosine: final lr, as a fraction of lr
    warmup_prefix: bool = True  # cosine: starts after warm-up; false: at step 0, under the warm-up (DAT)
    milestones: list[float] = numbers([], FRACTION)  # step: fractions of all steps
    gamma: float = number(0.1, POSITIVE)  # step: factor at each milestone


@dataclass
class TrainConfig:
    steps: int | None = number(None, COUNT)  # optimiser steps; exactly one of steps and epochs
    epochs: int | None = number(None, COUNT)  # passes over the training images
    # one of several random streams of data order, augmentation and dropout; initial weights and data stay
    stream: int = number(0, SEED)
    accumulate: int = number(1, COUNT)  # batches per optimiser step
    clip: float | None = number(0.1, POSITIVE)  # maximum gradient norm
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast
    ema: float | None = number(None, BELOW_ONE)  # EMA decay; the EMA weights are what is evaluated
    # with several processes. ddp: replicated model, fsdp2: sharded model, gradients and optimiser states
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    compile: bool = False  # torch.compile
    cuda_graphs: bool = False  # launch the kernels of the model's passes as CUDA graphs; images of one size, on a GPU
    channels_last: bool = False  # memory format of images and convolutions
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    log_every: int = number(50, COUNT)  # steps
    eval_every: int | None = number(None, COUNT)  # steps; null: once, at the end
    checkpoint_every: int | None = number(None, COUNT)  # steps; null: by time only
    checkpoint_minutes: float = number(10.0, POSITIVE)  # minutes between checkpoints
    # draw predictions and attention of a few validation images for TensorBoard and pictures/; does not affect results
    pictures: bool = True
