"""`bench export`: exported models beside PyTorch's eager mode, on the CPU."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnzoo import interop, models
from attnzoo.bench import accuracy, memory, records
from attnzoo.bench.models.base import Shape
from attnzoo.bench.operators.base import OURS
from attnzoo.bench.select import select_names
from attnzoo.bench.timing import time_interleaved
from attnzoo.errors import UserError
from attnzoo.interop.onnx import runner
from attnzoo.interop.program import InferenceModel
from attnzoo.models import presets

DEFAULT_MODELS = ("deformable_detr_r50", "dat_tiny")
DETECTOR_SHAPE, CLASSIFIER_SHAPE = (1, 800, 1066), (1, 224, 224)
TOLERANCE = 1e-4
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "torch.export": ("model.pt2", {}),
    "onnxruntime, grid_sample": ("grid_sample.onnx", {"sampling": "grid_sample"}),
    "onnxruntime, gather": ("gather.onnx", {"sampling": "gather"}),
}


def run(
    names: Sequence[str] = DEFAULT_MODELS,
    *,
    seconds: float = 5.0,
    shape: Shape | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_progress: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """The record of forward passes of presets with random weights on unpadded images `shape`, (B, H, W).

    Outputs are compared with eager mode first; a form that differs is not timed. `overrides` change the presets.
    `on_progress` receives the record after every row. Raises UserError for an unknown preset, and without onnxruntime.
    """
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        raise UserError("bench export needs onnxruntime: pip install 'attnzoo[onnx]'") from None
    device = torch.device("cpu")
    record = records.header("export", device, ["attnzoo", "onnx", "onnxscript", "onnxruntime"])
    record |= {"memory": memory.METHODS[device.type], "rows": []}
    for name in select_names("model", names, models.names()):
        detector = name in presets.names(family="detector")
        size = shape or (DETECTOR_SHAPE if detector else CLASSIFIER_SHAPE)
        torch.manual_seed(0)
        model = models.create(name, num_classes=91 if detector else 1000, **(overrides or {})).eval()
        row = {"model": name, "workload": f"forward, {size[0]} x {size[1]}x{size[2]}"}
        record["rows"].append(row | _measure(model, size, seconds))
        on_progress(record)
    return record


@torch.no_grad()
def _measure(model: nn.Module, shape: Shape, seconds: float) -> dict[str, Any]:
    eager = InferenceModel(model, mask=False)
    inputs = eager.example(*shape)
    calls: dict[str, Callable[[], list[Tensor]]] = {OURS: lambda: list(eager(**inputs))}
    row: dict[str, Any] = {"error": None, "reason": None, "implementations": {}}
    expected = calls[OURS]()
    with tempfile.TemporaryDirectory() as folder:
        for form, (file, options) in FORMS.items():
            path = interop.export_model(model, Path(folder, file), mask=False, **options)
            call = partial(runner(path, eager, threads=torch.get_num_threads()), inputs)
            try:
                outputs = zip(call(), expected, strict=True)
            except Exception as problem:  # a program refuses images below the stride of a level
                row["reason"] = f"{form}: {type(problem).__name__}: {str(problem).partition(chr(10))[0]}"
                continue
            error = max(accuracy.max_relative_error(theirs.double(), ours.double()) for theirs, ours in outputs)
            row["error"] = max(row["error"] or 0.0, error)
            if error <= TOLERANCE:
                calls[form] = call
            else:
                row["reason"] = f"mismatch: {form}: relative error {error:.1e}, allowed {TOLERANCE:.0e}"
        for name, samples in time_interleaved(calls, torch.device("cpu"), seconds).items():
            row["implementations"][name] = {"seconds": samples, "peak_bytes": None}
    return row


def failures(record: dict[str, Any]) -> list[str]:
    """Models with a form whose outputs differ from eager mode."""
    return [f"{row['model']}, {row['workload']}: {row['reason']}" for row in record["rows"] if row["reason"]]
