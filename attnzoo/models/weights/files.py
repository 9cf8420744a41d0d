"""Reading files of weights: PyTorch's and safetensors', run folders, folders of Hugging Face."""

import argparse
import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from os.path import isdir, isfile
from pathlib import Path
from typing import Any

from attnzoo.errors import UserError, as_yaml
from attnzoo.files import JSON_ERRORS, read_bytes, read_json
from attnzoo.models.weights.damage import damage
from attnzoo.paths import user_path, why_no_file

# Files of a folder, by preference; those of an index hold parts.
FOLDER_FILES = (
    "checkpoints/best-*.pt",
    "checkpoints/step-*.pt",
    "best-*.pt",
    "step-*.pt",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Of wrappers around a state dict; exponential moving averages are what is evaluated.
WRAPPERS = ("ema", "model_ema", "model", "state_dict", "model_state_dict", "module", "net")
HUGGING_FACE_CONFIG = "config.json"
_CHECKSUM = re.compile(r"\.([0-9a-f]{16})\.pt\Z")


def find(path: str, where: str = "") -> Path:
    """The file of a path, `~` expanded; in a folder, the best checkpoint of a run or the file of Hugging Face.

    Raises UserError if there is none; `where` is the config key of the path.
    """
    full, prefix = user_path(path), f"{where}: " if where else ""
    if isfile(full):
        return full
    if not isdir(full):
        raise UserError(f"{prefix}{path}: {why_no_file(full)}", key=where)
    for pattern in FOLDER_FILES:
        if files := sorted(full.glob(pattern)):
            return files[-1]
    wanted = "a run folder has checkpoints/*.pt, a Hugging Face folder model.safetensors or pytorch_model.bin"
    raise UserError(f"{prefix}{path}: no weights in this folder; {wanted}", key=where)


@dataclass(frozen=True)
class Content:
    """A state dict, on the CPU, and the options of the training or the model that its file or folder holds.

    `config`: of a checkpoint of a run, the record of the run's config, see `config.record`; else "".
    """

    state: dict[str, Any]
    options: dict[str, Any]
    config: str = ""


def read(path: str, where: str = "") -> dict[str, Any]:
    """The state dict in a file or folder, on the CPU, without the wrappers around it.

    Raises UserError if it is missing, not a state dict, corrupt, or needs more than tensors and plain values.
    """
    return read_content(path, where).state


def read_content(path: str, where: str = "") -> Content:
    """The state dict as `read` gives it, with the options: those of argparse, or of config.json beside the file."""
    file, prefix = find(path, where), f"{where}: " if where else ""
    content = _read_file(file, prefix, where)
    state = unwrap(content)
    if state is not None:
        check_tensors(state, str(file), where)
    else:
        keys = list(content)[:5] if isinstance(content, Mapping) else type(content).__name__
        raise UserError(f"{prefix}{file} is not a state dict (it holds {as_yaml(keys)})", key=where)
    config = content.get("config")
    return Content(state, _options(content, file), config if isinstance(config, str) else "")


def _options(content: Any, file: Path) -> dict[str, Any]:
    saved = content.get("args") if isinstance(content, Mapping) else None
    if isinstance(saved, (argparse.Namespace, Mapping)):
        return dict(saved if isinstance(saved, Mapping) else vars(saved))
    try:
        config = read_json(file.with_name(HUGGING_FACE_CONFIG))
    except JSON_ERRORS:
        return {}
    return dict(config) if isinstance(config, Mapping) else {}


def _read_file(file: Path, prefix: str, where: str) -> Any:
    try:
        if file.suffix != ".json":
            return _read_tensors(file, prefix, where)
        parts = sorted(set(read_json(file)["weight_map"].values()))
        paths = [find(str(file.with_name(part)), where) for part in parts]
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{prefix}{file}: {error.strerror}", key=where) from None
    except Exception as error:  # torch.load and safetensors raise many types for an invalid file
        reason = damage(file, error) or f"is not a state dict ({type(error).__name__})"
        raise UserError(f"{prefix}{file} {reason}", key=where) from error
    state: dict[str, Any] = {}
    for path in paths:
        if path.suffix == ".json":
            raise UserError(f"{prefix}{file}: weight_map has {path.name}, which holds no tensors", key=where)
        state |= _read_file(path, prefix, where)
    return state


def _read_tensors(file: Path, prefix: str, where: str) -> Any:
    import safetensors.torch
    import torch

    if file.suffix == ".safetensors":
        return safetensors.torch.load_file(file)
    checksum = _CHECKSUM.search(file.name)
    if checksum and hashlib.sha256(read_bytes(file, limit=None)).hexdigest()[:16] != checksum[1]:
        raise UserError(f"{prefix}{file}: corrupt checkpoint, checksum mismatch", key=where)
    # the options of facebook's and SenseTime's code
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
        warnings.filterwarnings("ignore", message=".*TorchScript archive")  # refused below
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            if "TorchScript" in str(error):
                how = f'torch.save(torch.jit.load({str(file)!r}).state_dict(), "weights.pt")'
                raise UserError(
                    f"{prefix}{file} holds a TorchScript program; keep its tensors alone: {how}", key=where
                ) from None
            if blocked := re.search(r"unsupported GLOBAL (\S+) whose module", str(error)):
                reason = f"would run {blocked[1]} when it is loaded: do not trust it"
                raise UserError(f"{prefix}{file} {reason}", key=where) from None
            unsafe = re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error))
            if unsafe is None:
                raise
            from attnzoo.models.weights.pickles import way_out

            kept = way_out(file, WRAPPERS)
            if kept is None:
                message = f"{prefix}{file} is not a state dict (it holds a {unsafe[1]}, and no tensors)"
                raise UserError(message, key=where) from None
            reason = f"holds a {unsafe[1]}, and loading it could run code"
            how = f"if you trust the file, keep its tensors alone: {kept}"
            raise UserError(f"{prefix}{file} {reason}; {how}", key=where) from None


def check_tensors(state: Mapping[str, Any], path: str, where: str = "") -> None:
    """Raise UserError for a tensor that is no plain array of real numbers: sparse, quantized or complex."""
    import torch

    prefix = f"{where}: " if where else ""
    for name, tensor in state.items():
        if tensor.layout != torch.strided:
            kind = "sparse"
        elif tensor.is_quantized:
            kind = "quantized"
        elif tensor.is_complex():
            kind = "complex"
        else:
            continue
        raise UserError(f"{prefix}{path}: {name} is {kind}; expected a dense tensor of real numbers", key=where)


def unwrap(content: Any) -> dict[str, Any] | None:
    """The innermost mapping of names to tensors, or None if there is none."""
    import torch

    if not isinstance(content, Mapping):
        return None
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping) and (state := unwrap(content[wrapper])):
            return state
    tensors = {name: each for name, each in content.items() if isinstance(name, str) and isinstance(each, torch.Tensor)}
    return {name: tensor.detach() for name, tensor in tensors.items()} or None
