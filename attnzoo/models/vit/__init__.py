"""Hierarchical vision transformers: trunk, classifier, and feature maps for detectors."""
