"""attnzoo: compare deformable attention variants in shared detection models.

Importing this package imports neither torch nor a model, so that the command line answers at once.
"""

__version__ = "0.1.0"
