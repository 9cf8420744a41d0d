"""Which presets weights fit."""

from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache

import torch
from torch import Tensor, nn

from attnzoo import models
from attnzoo.errors import UserError
from attnzoo.models import presets
from attnzoo.models.weights import Fit, fit, sources


def family_of(source: sources.Source) -> str:
    """The family of the presets that weights of a source may fit."""
    return "detector" if source.model == "detector" else "vit"


def fits(state: Mapping[str, Tensor], source: str, family: str, num_classes: int | None) -> dict[str, Fit]:
    """Those of all presets of a family with the kind of attention that the file has, built on the meta device."""
    found = {}
    names = models.names(family=family)
    for preset in [name for name in names if _is_plausible(name, family, state)] or names:
        with suppress(UserError):  # nothing fits
            found[preset] = fit(_on_meta(preset, num_classes), state, source)
    return found


def is_exact(result: Fit) -> bool:
    """Whether a file has all that the model has, and nothing that it has not."""
    return not (result.problems or result.report.missing or result.report.reshaped)


def num_classes(tensors: Mapping[str, Tensor]) -> int | None:
    """Of our names: a head with cross-entropy has one more logit, for "no object"; None without a class head."""
    rows = logits(tensors)
    if rows is None:
        return None
    dense = "neck.projections.0.1.weight" not in tensors and "heads.classes.0.weight" in tensors
    return max(rows - dense, 1)


def logits(tensors: Mapping[str, Tensor]) -> int | None:
    """The number of rows of the class head under our names; None without one."""
    head = tensors.get("heads.classes.0.weight", tensors.get("head.weight"))
    return None if head is None or head.ndim == 0 else len(head)


def explain(error: UserError, result: Fit | None, state: Mapping[str, Tensor], source: str) -> UserError:
    """The refusal of weights with what they are instead: their source, and the presets that they fit exactly.

    `result` is the fit that was refused, None if nothing fitted, of which the refusal names the source.
    """
    found, unwrapped, _ = sources.detect(state, source)
    if found is None or found.model == "backbone" or (result and result.without_values(allow_meta=True)):
        return error
    classes = num_classes(found.convert(unwrapped, ()).tensors)
    exact = [name for name, each in fits(state, source, family_of(found), classes).items() if is_exact(each)]
    fitted = f"fit the preset {' or '.join(exact)}" if exact else ""
    if result is None:
        told = f"they {fitted}" if exact else ""
    else:
        told = f"these are weights of {found.title}" + (f", which {fitted}" if exact else "")
    return UserError(f"{error}; {told}", key=error.keys) if told else error


@lru_cache(maxsize=32)
def _on_meta(preset: str, num_classes: int | None) -> nn.Module:
    """The model of a preset, without values: building one takes a second."""
    with torch.device("meta"):
        return models.create(preset, num_classes=num_classes)


def _is_plausible(preset: str, family: str, state: Mapping[str, Tensor]) -> bool:
    """Whether preset and file have the same kind of attention."""
    if family == "detector":
        deformable = any("sampling_offsets" in name for name in state)
        return deformable == (presets.detector_config(preset, {}).encoder.attention["name"] == "ms_deform")
    dat = any("conv_offset" in name for name in state)
    return dat == (presets.vit_config(preset, {}).stage4.second["name"] == "dat")
