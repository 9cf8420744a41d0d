"""Typed configs of experiments and models."""

from attnzoo.config.load import Experiment, digest, load, model_config, presets, save, vit_config
from attnzoo.config.schema import DetectorConfig, ExperimentConfig, VitConfig

__all__ = [
    "DetectorConfig",
    "Experiment",
    "ExperimentConfig",
    "VitConfig",
    "digest",
    "load",
    "model_config",
    "presets",
    "save",
    "vit_config",
]
