"""Weights of other projects: load them, say what they are, export to Hugging Face transformers; export to ONNX.

report = attnzoo.interop.load(model, "deformable_detr.pth")  # told from its keys
attnzoo.interop.export_huggingface(model, "folder")
attnzoo.interop.export_model(model, "model.onnx")
"""

from attnzoo.interop.export import export_huggingface
from attnzoo.interop.loading import load
from attnzoo.interop.onnx import export_model
from attnzoo.interop.program import export_program
from attnzoo.models.weights.fit import LoadReport

__all__ = ["LoadReport", "export_huggingface", "export_model", "export_program", "load"]
