"""The options of training: optimizer, learning-rate schedule and loop."""

# ruff: noqa: RUF009 — the functions called in defaults return dataclasses.field

from dataclasses import dataclass, field
from typing import Literal

from attnzoo.schema.fields import BELOW_ONE, COUNT, FRACTION, NON_NEGATIVE, POSITIVE, number, numbers


@dataclass
class OptimizerConfig:
    name: str = "adamw"  # or any other of timm.optim
    lr: float = number(2e-4, POSITIVE)
    weight_decay: float = number(1e-4, NON_NEGATIVE)
    decay_1d: bool = True  # also decay biases and normalisations
    no_decay: list[str] = field(default_factory=list)  # parts of the names of other parameters that do not decay
    # part of a parameter's name -> factor of lr
    lr_multipliers: dict[str, float] = field(default_factory=dict, metadata={"range": NON_NEGATIVE})


@dataclass
class ScheduleConfig:
    name: Literal["cosine", "step", "constant"] = "cosine"
    warmup: float = number(0.0, BELOW_ONE)  # share of all steps
    warmup_from: float | None = number(None, FRACTION)  # share of lr at the first step; null: one warm-up step's
    floor: float = number(0.0, FRACTION)  # cosine: share of lr at the end
    after_warmup: bool = True  # cosine: it begins when warm-up ends; false: at the first step, hidden by warm-up (DAT)
    milestones: list[float] = numbers([], FRACTION)  # step: shares of all steps
    gamma: float = number(0.1, POSITIVE)  # step: factor at each milestone


@dataclass
class TrainConfig:
    steps: int | None = number(None, COUNT)  # optimiser steps; exactly one of steps and epochs
    epochs: int | None = number(None, COUNT)
    accumulate: int = number(1, COUNT)  # batches per optimiser step
    clip: float | None = number(0.1, POSITIVE)  # maximum gradient norm
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast
    ema: float | None = number(None, BELOW_ONE)  # decay of the averaged weights that are then evaluated
    # how several processes share the model. ddp: all of it in each, fsdp2: a part of every tensor in each
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    compile: bool = False
    channels_last: bool = False
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    log_every: int = number(50, COUNT)  # steps
    eval_every: int | None = number(None, COUNT)  # steps; null: once, at the end
    checkpoint_every: int | None = number(None, COUNT)  # steps; null: by time only
    checkpoint_minutes: float = number(10.0, POSITIVE)
