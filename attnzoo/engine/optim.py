"""Optimiser parameter groups and learning-rate schedules of the published recipes."""

from collections.abc import Collection, Iterable

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from attnzoo.engine.config import OptimizerConfig, ScheduleConfig
from attnzoo.errors import UserError, did_you_mean, unknown

# Patterns of published recipes: learning-rate multipliers in Deformable DETR, no weight decay in Swin and DAT.
PUBLISHED_PATTERNS = ("backbone", "sampling_offsets", "reference_points", "relative_position_bias_table", "rpe_table")


def lr_multiplier(name: str, multipliers: dict[str, float]) -> float:
    """The first multiplier whose key is a substring of the parameter name, else 1."""
    return next((factor for part, factor in multipliers.items() if part in name), 1.0)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict]:
    """Trainable parameters grouped by learning-rate multiplier (`lr_scale`, read by timm's schedulers) and decay.

    The recipe of Deformable DETR is `{backbone: 0.1, reference_points: 0.1, sampling_offsets: 0.1}`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            no_decay = (parameter.ndim <= 1 and not config.decay_1d) or any(part in name for part in config.no_decay)
            decay = 0.0 if no_decay else config.weight_decay
            groups.setdefault((lr_multiplier(name, config.lr_multipliers), decay), []).append(parameter)
    return [
        {"params": parameters, "lr": config.lr, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def check_optimizer_name(config: OptimizerConfig) -> str:
    """The optimiser's name. Raises UserError if timm does not have it."""
    allowed = [str(name) for name in list_optimizers()]
    if config.name not in allowed:
        raise unknown("optimiser", config.name, allowed, "train.optimizer.name")
    return config.name


def check_parameter_patterns(config: OptimizerConfig, parameters: Collection[str]) -> None:
    """Raise UserError if a pattern of `lr_multipliers` or `no_decay` matches no name of `parameters`.

    `parameters` covers all models of a sweep, since a pattern may match only some of them. `PUBLISHED_PATTERNS` are
    always allowed, because not every model of a family has these parameters.
    """
    for key, patterns in (("lr_multipliers", config.lr_multipliers), ("no_decay", config.no_decay)):
        for pattern in patterns:
            if pattern not in PUBLISHED_PATTERNS and not any(pattern in name for name in parameters):
                parts = {part for name in parameters for part in name.split(".") if not part.isdigit()}
                hint = did_you_mean(pattern, parts)
                message = f"train.optimizer.{key}: {pattern!r} matches no parameter name{hint}"
                raise UserError(message, key=f"train.optimizer.{key}")


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser over `parameter_groups`. AdamW is fused: on the CPU the Python loop dominates for small models.

    Raises UserError for an unknown optimiser and for a model without trainable parameters.
    """
    name = check_optimizer_name(config)
    groups = parameter_groups(model, config)
    if not groups:
        raise UserError("model: no trainable parameters", key="model")
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    return create_optimizer_v2(groups, opt=name, lr=config.lr, weight_decay=config.weight_decay)


def build_schedule(optimizer: torch.optim.Optimizer, config: ScheduleConfig, steps: int) -> Scheduler:
    """The learning-rate schedule; call `step_update(step)` before optimiser step number `step`, from 0.

    Warm-up is linear over the first `warmup` fraction of `steps`, from lr * `warmup_start_factor`, by default lr /
    warm-up steps, so that no step has a learning rate of zero. "cosine" decays to lr * `min_lr_ratio` at `steps`, from
    the end of warm-up or, unless `warmup_prefix`, from step 0. "step" multiplies by `gamma` at each milestone.
    """
    warmup = round(config.warmup * steps)
    lr = optimizer.param_groups[0]["lr"]
    start_factor = 1 / max(warmup, 1) if config.warmup_start_factor is None else config.warmup_start_factor
    warmup_lr = lr * start_factor if warmup else 0.0
    if config.name == "cosine":
        return CosineLRScheduler(
            optimizer,
            t_initial=max(steps - warmup if config.warmup_prefix else steps, 1),
            lr_min=lr * config.min_lr_ratio,
            warmup_t=warmup,
            warmup_lr_init=warmup_lr,
            warmup_prefix=config.warmup_prefix,
            t_in_epochs=False,
        )
    milestones = config.milestones if config.name == "step" else []
    return MultiStepLRScheduler(
        optimizer,
        decay_t=[round(fraction * steps) + 1 for fraction in sorted(milestones)],  # timm decays one update early
        decay_rate=config.gamma,
        warmup_t=warmup,
        warmup_lr_init=warmup_lr,
        warmup_prefix=False,
        t_in_epochs=False,
    )


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Clip the total 2-norm of all gradients to `max_norm`; returns the norm before clipping, a scalar."""
    with_grad = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in with_grad if p.grad is not None], foreach=True)
    if max_norm is not None and not (norm.device.type == "cpu" and norm <= max_norm):  # a GPU would synchronise
        nn.utils.clip_grads_with_norm_(with_grad, max_norm, norm, foreach=True)
    return norm
