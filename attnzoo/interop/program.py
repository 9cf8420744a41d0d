"""Whole detectors and classifiers as programs of `torch.export`, with dynamic batch and size."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config
from torch.overrides import TorchFunctionMode

from attnzoo import ops
from attnzoo.errors import UserError, check_type, unknown
from attnzoo.models.detr.detector import Detector
from attnzoo.models.detr.postprocess import top_detections
from attnzoo.models.vit.classifier import Classifier
from attnzoo.ops.sampling import SAMPLERS

TOP = 5  # classes of each image
TRACED = (2, 512, 640)  # batch, height, width; large, as sizes of maps of one pixel would be taken for constants
LARGEST = 2**31  # a smaller upper bound of a size comes from the model
AXES = {
    "images": ("batch", "3", "height", "width"),
    "mask": ("batch", "height", "width"),
    "sizes": ("batch", "2"),
}


class InferenceModel(nn.Module):
    """A detector or classifier with plain tensors as inputs and outputs, in evaluation mode.

    Inputs, of which `inputs` lists those it has:

    - `images`: (B, 3, H, W) float32, normalised as for the model
    - `mask`: (B, H, W) bool, True where images are padded
    - `sizes`: (B, 2) int64, height and width in pixels of the original images

    Outputs, named in `outputs`:

    - of a detector `logits` (B, Q, num_logits) and `boxes` (B, Q, 4) of the last decoder layer, as in DetectorOutput;
      with `postprocess` `scores` (B, n), `labels` (B, n) and `boxes` (B, n, 4), as `postprocess` gives them
    - of a classifier `logits` (B, C); with `postprocess` `scores` (B, 5) and `labels` (B, 5), the most probable classes

    `mask` selects the input of this name, by default of detectors. Raises UserError for another model.
    """

    def __init__(
        self, model: nn.Module, *, mask: bool | None = None, postprocess: bool = False, max_detections: int = 100
    ):
        super().__init__()
        if not isinstance(model, (Detector, Classifier)):
            raise UserError(f"cannot export a {type(model).__name__}: expected a detector or a classifier of attnzoo")
        detector = isinstance(model, Detector)
        self.model, self.postprocess, self.max_detections = model, postprocess, max_detections
        self.inputs = ["images"]
        if detector if mask is None else mask:
            self.inputs.append("mask")
        if detector and postprocess:
            self.inputs.append("sizes")
        self.outputs = ["scores", "labels"] if postprocess else ["logits"]
        if detector:
            self.outputs.append("boxes")

    def forward(self, images: Tensor, mask: Tensor | None = None, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        if mask is not None:
            torch._check(mask.shape[1] == images.shape[2] and mask.shape[2] == images.shape[3])
        with _ContiguousConvolutions() if torch.compiler.is_exporting() else nullcontext():
            output = self.model(images, mask)
        if isinstance(self.model, Classifier):
            if not self.postprocess:
                return (output,)
            scores, labels = output.softmax(-1).topk(min(TOP, self.model.num_classes))
            return scores, labels
        if not self.postprocess:
            return output.logits[-1], output.boxes[-1]
        assert sizes is not None
        return top_detections(output, sizes, self.model.config.loss.classification, self.max_detections)

    def example(self, batch: int, height: int, width: int, seed: int = 0) -> dict[str, Tensor]:
        """Random inputs; with a mask, the last of several images is padded at the bottom and right."""
        generator = torch.Generator().manual_seed(seed)
        inputs = {"images": torch.randn(batch, 3, height, width, generator=generator)}
        if "mask" in self.inputs:
            inputs["mask"] = torch.zeros(batch, height, width, dtype=torch.bool)
            inputs["mask"][1:][-1:, height * 3 // 4 :] = True
            inputs["mask"][1:][-1:, :, width * 4 // 5 :] = True
        if "sizes" in self.inputs:
            inputs["sizes"] = torch.tensor([[480, 640 + image] for image in range(batch)])
        device = next(self.model.parameters()).device
        return {name: value.to(device) for name, value in inputs.items()}


class _ContiguousConvolutions(TorchFunctionMode):
    """Convolutions of contiguous maps: of others, PyTorch asks for the batch, and the program takes no single image."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def export_program(
    model: nn.Module,
    *,
    mask: bool | None = None,
    postprocess: bool = False,
    max_detections: int = 100,
    sampling: str | None = None,
) -> torch.export.ExportedProgram:
    """A detector or classifier as a program with dynamic batch and size; inputs and outputs as of InferenceModel.

    `sampling` replaces attnzoo's operators: `grid_sample`, or `gather`, which has no GridSample. Without it the program
    has the operators, and where it is loaded `attnzoo.ops` must be imported first.

    Raises UserError for another model, and for one that PyTorch cannot export.
    """
    if sampling is not None and sampling not in SAMPLERS:
        raise unknown("sampling", sampling, SAMPLERS, "sampling")
    check_type("model", model, (nn.Module,), "a detector or a classifier of attnzoo")
    wrapped = InferenceModel(model, mask=mask, postprocess=postprocess, max_detections=max_detections)
    training = model.training
    try:
        wrapped.eval()
        program = _export(wrapped)
        return program if sampling is None else program.run_decompositions(ops.decompositions(sampling))
    finally:
        model.train(training)


def _export(model: InferenceModel) -> torch.export.ExportedProgram:
    dynamic = torch.export.Dim.DYNAMIC  # an error if the size became a constant
    dynamic_axes: Any = {
        name: {axis: dynamic for axis, size in enumerate(AXES[name]) if not size.isdigit()} for name in model.inputs
    }
    try:
        # Without guards on what is true of the example alone, such as several images or windows.
        with _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            program = torch.export.export(model, (), model.example(*TRACED), dynamic_shapes=dynamic_axes)
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"PyTorch cannot export this model: {reason}") from error
    for name, bounds in size_bounds(program).items():
        if bounds.upper < LARGEST:
            raise UserError(f"PyTorch cannot export this model for all sizes: {name} would be at most {bounds.upper}")
        if bounds.lower > 1 and name == "images.0":
            raise UserError(f"PyTorch cannot export this model for single images: batches would be from {bounds.lower}")
    return program


def size_bounds(program: torch.export.ExportedProgram) -> dict[str, Any]:
    """Bounds of the axes of inputs, such as "images.2"."""
    inputs = set(program.graph_signature.user_inputs)
    sizes = {
        f"{node.name}.{axis}": size.node.expr
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in inputs
        for axis, size in enumerate(node.meta["val"].shape)
        if isinstance(size, torch.SymInt)
    }
    return {name: program.range_constraints[expr] for name, expr in sizes.items() if expr in program.range_constraints}
