"""Write detectors and classifiers as ONNX or as a program of `torch.export`, and compare them with PyTorch."""

import io
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnzoo.errors import UserError, check_type, unknown
from attnzoo.interop.program import AXES, InferenceModel, export_program
from attnzoo.models.detr.queries import TwoStageQueries
from attnzoo.ops.sampling import SAMPLERS
from attnzoo.paths import output_file
from attnzoo.rundir.folder import atomic_write

OPSETS = (18, 20)
ONNX, PROGRAM = ".onnx", ".pt2"
TOLERANCE = 1e-4
COMPARED = ((1, 256, 320), (3, 271, 301))
METADATA = "metadata.json"


def export_model(
    model: nn.Module,
    file: str | Path,
    *,
    opset: int | None = None,
    sampling: str | None = None,
    mask: bool | None = None,
    postprocess: bool = False,
    max_detections: int = 100,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a whole detector or classifier with dynamic batch and size; returns the file.

    - `file`: model.onnx, or model.pt2, a program that `torch.export.load` reads; its folder is made
    - `opset`: 18 or 20 (default), of ONNX alone
    - `sampling`: `grid_sample`, the default of ONNX, or `gather`, without GridSample, which TensorRT compiles wrongly
      (its issues 4646 and 4813). A program has attnzoo's operators by default.
    - `mask`, `postprocess`, `max_detections`: the inputs and outputs, as of InferenceModel
    - `metadata`: values, as JSON, in the metadata of ONNX or in metadata.json of a program

    Raises UserError, before anything is written, for a file name or an option that is not allowed, a model that cannot
    be exported, and, for ONNX, without onnxscript; TypeError for arguments of other types.
    """
    check_type("model", model, (nn.Module,), "a detector or a classifier of attnzoo")
    file = check_options(file, opset, sampling)
    kind = ONNX if file.suffix.lower() == ONNX else PROGRAM
    if kind == ONNX:
        _require("onnxscript")
        sampling = "grid_sample" if sampling is None else sampling
    options: Any = {"mask": mask, "postprocess": postprocess, "max_detections": max_detections}
    wrapped = InferenceModel(model, **options)
    program = export_program(model, sampling=sampling, **options)
    values = dict(metadata or {})
    content = _onnx(program, wrapped, opset or OPSETS[-1], values) if kind == ONNX else _archive(program, values)
    with atomic_write(file, "wb") as stream:
        stream.write(content)
    return file


def describe(model: nn.Module, **options: Any) -> str:
    """The inputs and outputs of an exported model in one line; `options` as of InferenceModel."""
    wrapped = InferenceModel(model, **options)
    inputs = (f"{name} ({', '.join(AXES[name])})" for name in wrapped.inputs)
    return f"inputs {', '.join(inputs)}; outputs {', '.join(wrapped.outputs)}"


def check_options(file: str | Path, opset: int | None = None, sampling: str | None = None) -> Path:
    """The file, `~` expanded. Raises UserError for a file that cannot be written, and an option that is not allowed."""
    check_type("file", file, (str, PathLike), "a path")
    check_type("opset", opset, (int, type(None)), "a number")
    path = output_file(file, (ONNX, PROGRAM), "file")
    if opset is not None and opset not in OPSETS:
        raise UserError(f"opset = {opset}: expected {' or '.join(map(str, OPSETS))}", key="opset")
    if opset is not None and path.suffix.lower() == PROGRAM:
        raise UserError(f"opset = {opset}: a {PROGRAM} file has no operators of ONNX", key="opset")
    if sampling is not None and sampling not in SAMPLERS:
        raise unknown("sampling", sampling, SAMPLERS, "sampling")
    return path


def _require(package: str) -> None:
    try:
        __import__(package)
    except ImportError:
        raise UserError(f"ONNX needs {package}: pip install 'attnzoo[onnx]'") from None


def _archive(program: torch.export.ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found in the group")  # of weights on the GPU
        torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata)})
    return buffer.getvalue()


def _onnx(
    program: torch.export.ExportedProgram, model: InferenceModel, opset: int, metadata: Mapping[str, Any]
) -> bytes:
    try:
        exported = torch.onnx.export(
            program, opset_version=opset, input_names=model.inputs, output_names=model.outputs, verbose=False
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise UserError(f"this model cannot be written as ONNX: {reason}") from error
    assert exported is not None
    _name_axes(exported.model)
    exported.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    content: bytes = exported.model_proto.SerializeToString()
    return content


def _name_axes(model: Any) -> None:
    """Give the dynamic axes their names in AXES, in all shapes, in place of symbols such as s31."""
    import onnx_ir as ir

    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for size, name in zip(value.shape, AXES[value.name], strict=True):
            if not isinstance(size, int):
                names.setdefault(str(size), name)
    symbols = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            sizes = [s if isinstance(s, int) else symbols.sub(lambda m: names[m[1]], str(s)) for s in value.shape]
            value.shape = ir.Shape([None if size == "None" else size for size in sizes])


def largest_difference(
    file: Path, model: nn.Module, *, shapes: Sequence[tuple[int, int, int]] = COMPARED, **options: Any
) -> float:
    """The largest difference between an exported file and PyTorch on images `shapes`, (B, H, W) each.

    The last image of several is padded. Two-stage detectors get twice the size, so that there are enough tokens.
    `options` are `mask`, `postprocess` and `max_detections` of the export. Boxes are compared in units of the image,
    and the detections of an image as a set: nearly equal scores may be sorted differently.
    """
    wrapped = InferenceModel(model, **options)
    training = model.training
    run = runner(file, wrapped)
    try:
        wrapped.eval()
        scale = 2 if isinstance(getattr(model, "queries", None), TwoStageQueries) else 1
        differences = [
            _difference(*(_in_image_units(outputs, inputs) for outputs in (run(inputs), _outputs(wrapped, inputs))))
            for seed, (batch, height, width) in enumerate(shapes, start=1)
            for inputs in [wrapped.example(batch, height * scale, width * scale, seed)]
        ]
    finally:
        model.train(training)
    return max(differences)


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    return [output.cpu() for output in model(**inputs)]


def runner(
    file: Path, model: InferenceModel, threads: int | None = None
) -> Callable[[Mapping[str, Tensor]], list[Tensor]]:
    """A function that runs an exported file on inputs by name; ONNX on the CPU, on `threads` threads.

    Raises ImportError for ONNX without onnxruntime.
    """
    if file.suffix.lower() == PROGRAM:
        program = torch.export.load(file).module()
        return lambda inputs: _outputs(program, inputs)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda inputs: [
        torch.from_numpy(output)
        for output in session.run(model.outputs, {name: value.cpu().numpy() for name, value in inputs.items()})
    ]


def _in_image_units(outputs: list[Tensor], inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The outputs, with boxes in pixels divided by the larger side of their image."""
    if "sizes" not in inputs:
        return outputs
    *others, boxes = outputs
    return [*others, boxes / inputs["sizes"].amax(1).view(-1, 1, 1).cpu()]


def _difference(actual: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of an element; rows of (B, n, …) outputs are matched to the nearest."""
    for output, other in zip(actual, expected, strict=True):
        if output.shape != other.shape:
            raise ValueError(f"expected an output of {tuple(other.shape)}, got {tuple(output.shape)}")
    if expected[0].dim() == 2 and len(expected) == 1:
        return float((actual[0] - expected[0]).abs().max())
    rows, others = (
        torch.cat([x if x.dim() == 3 else x[..., None] for x in outputs], -1).double() for outputs in (actual, expected)
    )
    distances = (rows[:, :, None] - others[:, None]).abs().amax(-1)
    return float(torch.maximum(distances.amin(1).max(), distances.amin(2).max()))
