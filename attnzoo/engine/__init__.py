"""Training: the loop, its checkpoints, metrics and process group. One run is `python -m attnzoo.worker.train DIR`."""
