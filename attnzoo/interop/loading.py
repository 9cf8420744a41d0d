"""Load weights of any known source into a model."""

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path

from torch import Tensor, nn

from attnzoo.errors import check_type
from attnzoo.models.weights import AUTO, LoadReport, load_weights


def load(
    model: nn.Module, weights: str | Path | Mapping[str, Tensor], source: str = AUTO, *, strict: bool = True
) -> LoadReport:
    """Load a file, run folder, Hugging Face folder or state dict into a detector, classifier or backbone.

    `source` is the name of a table in attnzoo/models/weights/sources, or "auto": told from the keys. Returns what was
    loaded, reshaped, skipped and missing; `print` it. Position bias tables are resized (bicubic, as in Swin and DAT).
    Class heads of other classes, queries and feature levels that the file does not have, and attentions of another kind
    keep their values; `strict` refuses any other difference, otherwise what fits is loaded.

    Files are read with `weights_only=True`. Raises UserError, before anything is loaded, for a file that is missing,
    corrupt, needs other Python objects, or does not fit; TypeError for arguments of other types.
    """
    check_type("model", model, (nn.Module,), "a torch module")
    check_type("weights", weights, (str, PathLike, Mapping), "a path or a state dict")
    check_type("source", source, (str,), "a name")
    return load_weights(
        model, weights if isinstance(weights, Mapping) else fspath(weights), source=source, strict=strict
    )
