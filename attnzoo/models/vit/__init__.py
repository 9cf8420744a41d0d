"""Hierarchical vision transformers: trunk, classifier, and feature maps for detectors."""

from attnzoo.models.vit.classifier import Classifier
from attnzoo.models.vit.features import Features
from attnzoo.models.vit.trunk import Trunk

__all__ = ["Classifier", "Features", "Trunk"]
