"""Typed configs of experiments and models."""

from attnzoo.config.load import Experiment, classifier_config, digest, load, model_config, presets, save, vit_config
from attnzoo.config.schema import ClassifierConfig, DetectorConfig, ExperimentConfig, VitConfig

__all__ = [
    "ClassifierConfig",
    "DetectorConfig",
    "Experiment",
    "ExperimentConfig",
    "VitConfig",
    "classifier_config",
    "digest",
    "load",
    "model_config",
    "presets",
    "save",
    "vit_config",
]
