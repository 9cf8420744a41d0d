"""Starting a model from a state dict: another model's, for images of another size or for other classes."""

import math
import re
from os.path import isfile

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.errors import UserError

# Tables of biases by displacement: (entries, heads), (heads, rows, columns), (heads, rows, columns).
_POSITION_BIAS = re.compile(r"(relative_position_bias_table|rpb|rpe_table\.\d+)\Z")


def load_weights(model: nn.Module, path: str, where: str, *, own: str = "", part: bool = False) -> None:
    """Load a state dict, stretching tables of position biases to the sizes they have here (bicubic, as DAT does).

    What lies below `own` keeps its random weights unless the file has them, of that size. With `part` the model is a
    part of what was saved: other tensors in the file are left alone. Raises UserError, its message beginning with the
    key `where`, for a file that is missing or does not fit; on the meta device, where there is nowhere to load it, that
    is all.
    """
    state, wanted = _read(path, where), model.state_dict()
    if not part and (unknown := state.keys() - wanted.keys()):
        raise UserError(f"{where}: {path} has {len(unknown)} tensors that the model lacks, such as {min(unknown)!r}")
    optional = {name for name in wanted if (own and name.startswith(own)) or name.endswith("num_batches_tracked")}
    if lacking := [name for name in wanted if name not in state and name not in optional]:
        raise UserError(f"{where}: {path} lacks {len(lacking)} tensors of the model, such as {lacking[0]!r}")
    fitted = {}
    for name, like in wanted.items():
        if name not in state:
            continue
        tensor = _fitted(name, state[name], like.shape)
        if tensor is not None:
            fitted[name] = tensor
        elif name not in optional:
            raise UserError(f"{where}: {path}: {name} is {tuple(state[name].shape)}, here {tuple(like.shape)}")
    if not next(model.parameters()).is_meta:
        model.load_state_dict(fitted, strict=False)


def _read(path: str, where: str) -> dict[str, Tensor]:
    if not isfile(path):
        raise UserError(f"{where}: there is no file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.detach() for name, tensor in state.items()}
    except Exception as error:  # whatever the file holds
        raise UserError(f"{where}: {path} is not a state dict ({type(error).__name__})") from error


def _fitted(name: str, tensor: Tensor, shape: torch.Size) -> Tensor | None:
    """A tensor of the file at the size it has here; None where it cannot have that."""
    if tensor.shape == shape:
        return tensor
    heads = 1 if tensor.ndim == 2 else 0
    same = tensor.ndim == len(shape) and tensor.shape[heads] == shape[heads]
    return resize_position_bias(tensor, shape) if same and _POSITION_BIAS.search(name) else None


def resize_position_bias(table: Tensor, shape: torch.Size) -> Tensor:
    """A table of biases of square windows (entries, heads), or of maps (heads, rows, columns), at another size."""
    if table.ndim == 3:
        return F.interpolate(table[None], size=tuple(shape[1:]), mode="bicubic")[0]
    old, new = math.isqrt(table.shape[0]), math.isqrt(shape[0])
    square = table.T.unflatten(1, (old, old))
    return F.interpolate(square[None], size=(new, new), mode="bicubic")[0].flatten(1).T
