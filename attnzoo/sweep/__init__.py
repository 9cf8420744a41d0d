"""Expands an experiment into runs and launches them, here or on SLURM."""
