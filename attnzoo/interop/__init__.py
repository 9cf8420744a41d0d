"""Weights of other projects: load them, say what they are, export to Hugging Face transformers.

report = attnzoo.interop.load(model, "deformable_detr.pth")  # told from its keys
attnzoo.interop.export_huggingface(model, "folder")
"""

from attnzoo.interop.export import export_huggingface
from attnzoo.interop.loading import load
from attnzoo.models.weights.fit import LoadReport

__all__ = ["LoadReport", "export_huggingface", "load"]
