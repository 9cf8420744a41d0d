"""Load pretrained weights: position bias tables are resized, mismatched heads keep their initialisation."""

import math
import re
from os.path import isfile

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from attnzoo.errors import UserError, plural

# Swin: (entries, heads); NATTEN and DAT: (heads, rows, columns).
_POSITION_BIAS = re.compile(r"(relative_position_bias_table|rpb|rpe_table\.\d+)\Z")


def load_weights(
    model: nn.Module, path: str, where: str, *, optional_prefix: str = "", allow_unexpected: bool = False
) -> None:
    """Load a state dict, with position bias tables resized to the shapes of the model (bicubic, as in DAT).

    Parameters under `optional_prefix` keep their initialisation if the file has none of that name and shape.
    With `allow_unexpected`, keys that the model does not have are ignored. On the meta device the file is only checked.
    Raises UserError for a file that is missing or does not fit; `where` is the config key of the path.
    """
    state, model_state = _load_state_dict(path, where), model.state_dict()
    if not allow_unexpected and (unexpected := state.keys() - model_state.keys()):
        raise UserError(
            f"{where}: {path} has {plural(len(unexpected), 'unexpected key')}, such as {min(unexpected)!r}", key=where
        )
    optional = {
        name
        for name in model_state
        if (optional_prefix and name.startswith(optional_prefix)) or name.endswith("num_batches_tracked")
    }
    if missing := [name for name in model_state if name not in state and name not in optional]:
        raise UserError(f"{where}: {path} has {plural(len(missing), 'missing key')}, e.g. {missing[0]!r}", key=where)
    resized = {}
    for name, param in model_state.items():
        if name not in state:
            continue
        tensor = _resize_to(name, state[name], param.shape)
        if tensor is not None:
            resized[name] = tensor
        elif name not in optional:
            raise UserError(
                f"{where}: {path}: size mismatch for {name}: {tuple(state[name].shape)} in the file, "
                f"{tuple(param.shape)} in the model",
                key=where,
            )
    if not next(model.parameters()).is_meta:
        model.load_state_dict(resized, strict=False)


def _load_state_dict(path: str, where: str) -> dict[str, Tensor]:
    if not isfile(path):
        raise UserError(f"{where}: file not found: {path}", key=where)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.detach() for name, tensor in state.items()}
    except Exception as error:  # torch.load raises many types for an invalid file
        raise UserError(f"{where}: {path} is not a state dict ({type(error).__name__})", key=where) from error


def _resize_to(name: str, tensor: Tensor, shape: torch.Size) -> Tensor | None:
    """The tensor in the given shape, or None unless it has that shape or is a position bias table."""
    if tensor.shape == shape:
        return tensor
    heads_dim = 1 if tensor.ndim == 2 else 0
    same_heads = tensor.ndim == len(shape) and tensor.shape[heads_dim] == shape[heads_dim]
    return resize_position_bias(tensor, shape) if same_heads and _POSITION_BIAS.search(name) else None


def resize_position_bias(table: Tensor, shape: torch.Size) -> Tensor:
    """Bicubic resize of a position bias table: (entries, heads) of square windows, or (heads, rows, columns)."""
    if table.ndim == 3:
        return F.interpolate(table[None], size=tuple(shape[1:]), mode="bicubic")[0]
    old, new = math.isqrt(table.shape[0]), math.isqrt(shape[0])
    square = rearrange(table, "(h w) heads -> 1 heads h w", h=old)
    return rearrange(F.interpolate(square, size=(new, new), mode="bicubic"), "1 heads h w -> (h w) heads")
