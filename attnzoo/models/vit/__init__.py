"""Hierarchical ViTs: trunk, classifier, and feature maps for detectors."""
