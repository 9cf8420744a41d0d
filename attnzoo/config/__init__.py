"""Typed configs of experiments and models."""

from attnzoo.config.load import Experiment, digest, load, model_config, presets, save
from attnzoo.config.schema import ExperimentConfig, ModelConfig

__all__ = ["Experiment", "ExperimentConfig", "ModelConfig", "digest", "load", "model_config", "presets", "save"]
