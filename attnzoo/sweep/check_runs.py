"""Checks every run of a sweep before anything is written: options, data set, and the model by a dry run."""

import dataclasses
from collections.abc import Sequence

import torch

from attnzoo import models
from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.load import Experiment, digest
from attnzoo.config.options import resolve_options
from attnzoo.data.build import check_cache, dataset_info
from attnzoo.engine.optim import check_optimizer_name, check_parameter_patterns
from attnzoo.engine.trainer import count_steps
from attnzoo.errors import UserError
from attnzoo.models.dry_run import dry_run
from attnzoo.sweep.expand import RunSpec, drop_repeats


def check_runs(experiment: Experiment, runs: Sequence[RunSpec]) -> list[RunSpec]:
    """The runs with all options written into their configs.

    Each distinct model is built once, on the meta device, and run; no image is read. Raises UserError, naming file, run
    and key, for options that are not allowed and a model that cannot be built or run.
    """
    resolved: dict[str, ExperimentConfig] = {}
    parameters: dict[str, list[str]] = {}  # names of parameters, by what their model is built from
    valid = []
    for run in runs:
        try:
            if run.digest not in resolved:
                resolved[run.digest] = resolve_options(run.config)
                _check(resolved[run.digest], parameters)
        except UserError as error:
            raise _locate(error, experiment, run, len(runs)) from None
        shared = resolved[run.digest]
        config = dataclasses.replace(run.config, data=shared.data, model=shared.model, versions=shared.versions)
        valid.append(dataclasses.replace(run, config=config, digest=digest(config)))
    for config in {run.digest: run.config for run in valid}.values():
        check_cache(config.data, config.seed, writable=config.launcher == "local")
    valid = drop_repeats(valid, experiment)
    names = {name for model_names in parameters.values() for name in model_names}
    for run in valid:
        try:
            check_parameter_patterns(run.config.train.optimizer, names)
        except UserError as error:
            raise _locate(error, experiment, run, len(runs)) from None
    return valid


def _locate(error: UserError, experiment: Experiment, run: RunSpec, num_runs: int) -> UserError:
    return experiment.locate(error, run.changes, run.name if num_runs > 1 else "")


def _check(config: ExperimentConfig, parameters: dict[str, list[str]]) -> None:
    data = dataset_info(config.data)
    num_classes = models.resolve_num_classes(config.model, data.num_classes)
    if data.train_length is not None:
        if config.data.batch_size > data.train_length:
            raise UserError(
                f"data.batch_size = {config.data.batch_size}: there are only {data.train_length} training images",
                key="data.batch_size",
            )
        count_steps(config.train, data.train_length // config.data.batch_size)
    check_optimizer_name(config.train.optimizer)
    if config.device == "cuda" and config.launcher == "local" and not torch.cuda.is_available():
        raise UserError("device = 'cuda': no CUDA GPU is visible here (allowed: auto, cpu)", key="device")
    if config.train.cuda_graphs and config.launcher == "local" and not torch.cuda.is_available():
        raise UserError(
            "train.cuda_graphs = true: no CUDA GPU is visible here (allowed: false)", key="train.cuda_graphs"
        )
    batch_size = max(config.data.batch_size // config.processes, 1)
    model = repr((config.model, num_classes, data.size, batch_size))
    if model not in parameters:  # runs may share the model and the sizes
        parameters[model] = dry_run(config.model, num_classes, data.size, batch_size)
