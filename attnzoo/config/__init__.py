"""Experiment files: finding, merging, checking and saving them. Importing it imports no torch."""
