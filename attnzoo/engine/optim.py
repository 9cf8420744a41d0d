"""Optimisers with the parameter groups of the published recipes, and schedules that depend on the step alone."""

from collections.abc import Collection, Iterable

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from attnzoo.engine.config import OptimizerConfig, ScheduleConfig
from attnzoo.errors import UserError, did_you_mean, unknown

# Named in published recipes: with rates of their own in Deformable DETR, without decay in Swin and DAT.
PUBLISHED_PATTERNS = ("backbone", "sampling_offsets", "reference_points", "relative_position_bias_table", "rpe_table")


def lr_multiplier(name: str, multipliers: dict[str, float]) -> float:
    """The factor of the first entry whose key occurs in the parameter name, or 1."""
    return next((factor for part, factor in multipliers.items() if part in name), 1.0)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict]:
    """Trainable parameters grouped by learning-rate factor (`lr_scale`, read by timm's schedulers) and weight decay.

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
    """The optimiser's name. Raises UserError for one that timm does not know."""
    known = [str(name) for name in list_optimizers()]
    if config.name not in known:
        raise unknown("optimiser", config.name, known, "train.optimizer.name")
    return config.name


def check_parameter_patterns(config: OptimizerConfig, parameters: Collection[str]) -> None:
    """Raise UserError for an entry of `lr_multipliers` or `no_decay` that occurs in no name of `parameters`.

    Those are the names of all of a sweep's models: an entry may be meant for one of them. The published recipes'
    entries are always allowed, because not every model of a family has what they name.
    """
    for key, entries in (("lr_multipliers", config.lr_multipliers), ("no_decay", config.no_decay)):
        for entry in entries:
            if entry not in PUBLISHED_PATTERNS and not any(entry in name for name in parameters):
                parts = {part for name in parameters for part in name.split(".") if not part.isdigit()}
                hint = did_you_mean(entry, parts)
                raise UserError(f"train.optimizer.{key}: {entry!r} occurs in the name of no parameter{hint}")


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser over `parameter_groups`; AdamW fused, as a small model on a CPU else spends its time in Python.

    Raises UserError as `check_optimizer_name` does.
    """
    name = check_optimizer_name(config)
    groups = parameter_groups(model, config)
    if not groups:
        raise UserError("model: no parameter is trainable")
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    return create_optimizer_v2(groups, opt=name, lr=config.lr, weight_decay=config.weight_decay)


def build_schedule(optimizer: torch.optim.Optimizer, config: ScheduleConfig, steps: int) -> Scheduler:
    """The learning rate of every step; call `step_update(step)` before the optimiser step of that number, from 0.

    Warm-up is linear over the first `warmup` share of `steps` and starts, unless `warmup_from` says otherwise, at one
    warm-up step's share of the full rate, so that no step is wasted at rate zero. Cosine falls to `floor` at `steps`,
    from the end of warm-up or, unless `after_warmup`, from the first step; step decays at its milestones.
    """
    warmup = round(config.warmup * steps)
    lr = optimizer.param_groups[0]["lr"]
    share = 1 / max(warmup, 1) if config.warmup_from is None else config.warmup_from
    first = lr * share if warmup else 0.0
    if config.name == "cosine":
        return CosineLRScheduler(
            optimizer,
            t_initial=max(steps - warmup if config.after_warmup else steps, 1),
            lr_min=lr * config.floor,
            warmup_t=warmup,
            warmup_lr_init=first,
            warmup_prefix=config.after_warmup,
            t_in_epochs=False,
        )
    milestones = config.milestones if config.name == "step" else []
    return MultiStepLRScheduler(
        optimizer,
        decay_t=[round(share * steps) + 1 for share in sorted(milestones)],  # timm decays one update early
        decay_rate=config.gamma,
        warmup_t=warmup,
        warmup_lr_init=first,
        warmup_prefix=False,
        t_in_epochs=False,
    )


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float | None) -> Tensor:
    """Scale all gradients so that their total 2-norm is at most `limit`; returns the norm before, a scalar."""
    with_grad = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in with_grad if p.grad is not None], foreach=True)
    if limit is not None:
        nn.utils.clip_grads_with_norm_(with_grad, limit, norm, foreach=True)
    return norm
