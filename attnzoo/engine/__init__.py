"""Training loop, checkpoints, metrics and distributed setup."""
