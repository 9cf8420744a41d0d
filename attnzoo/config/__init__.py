"""Experiment files: finding, merging, checking and saving them. Imports no torch."""
