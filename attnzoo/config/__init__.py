"""Typed configs of experiments and models."""

from attnzoo.config.load import Experiment, digest, load, model_config, presets, save, vit_config
from attnzoo.config.schema import ExperimentConfig, ModelConfig, VitConfig

__all__ = [
    "Experiment",
    "ExperimentConfig",
    "ModelConfig",
    "VitConfig",
    "digest",
    "load",
    "model_config",
    "presets",
    "save",
    "vit_config",
]
