"""The process that trains one run: `python -m attnzoo.worker RUN_DIR`."""
