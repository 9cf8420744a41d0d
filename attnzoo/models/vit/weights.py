"""Weights of a classifier for one of another image size or other classes."""

import math
from os.path import isfile

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.errors import UserError

WHERE = "model.weights"
# Tables of biases by displacement: (entries, heads), (heads, rows, columns), (heads, rows, columns).
_TABLES = ("relative_position_bias_table", "rpe_table", "rpb")


def load_weights(model: nn.Module, path: str) -> None:
    """Load a state dict, stretching tables of position biases to the sizes they have here (bicubic, as DAT does).

    A head for other classes keeps its random weights. Raises UserError for a file that is missing or does not fit; on
    the meta device, where there is nowhere to load it, that is all.
    """
    state, own = _read(path), model.state_dict()
    if unknown := state.keys() - own.keys():
        raise UserError(f"{WHERE}: {path} has {len(unknown)} tensors that the model lacks, such as {min(unknown)!r}")
    fitted = {}
    for name, tensor in state.items():
        wanted = own[name].shape
        if tensor.shape != wanted and name.startswith("head."):
            continue
        if tensor.shape != wanted and any(part in _TABLES for part in name.split(".")):
            tensor = stretch(tensor, wanted)
        if tensor.shape != wanted:
            raise UserError(f"{WHERE}: {path}: {name} is {tuple(tensor.shape)}, here {tuple(wanted)}")
        fitted[name] = tensor
    if lacking := [name for name in own if name not in fitted and not name.startswith("head.")]:
        raise UserError(f"{WHERE}: {path} lacks {len(lacking)} tensors of the model, such as {lacking[0]!r}")
    if not next(model.parameters()).is_meta:
        model.load_state_dict(fitted, strict=False)


def _read(path: str) -> dict[str, Tensor]:
    if not isfile(path):
        raise UserError(f"{WHERE}: there is no file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.detach() for name, tensor in state.items()}
    except Exception as error:  # whatever the file holds
        raise UserError(f"{WHERE}: {path} is not a state dict ({type(error).__name__})") from error


def stretch(table: Tensor, shape: torch.Size) -> Tensor:
    """A table of biases of square windows (entries, heads), or of maps (heads, rows, columns), at another size."""
    if table.ndim == 3:
        return F.interpolate(table[None], size=tuple(shape[1:]), mode="bicubic")[0]
    old, new = math.isqrt(table.shape[0]), math.isqrt(shape[0])
    square = table.T.unflatten(1, (old, old))
    return F.interpolate(square[None], size=(new, new), mode="bicubic")[0].flatten(1).T
