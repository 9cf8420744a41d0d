"""Published weights: reading their files, converting their names, fitting them into a model."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from attnzoo.errors import UserError
from attnzoo.models.weights import files, sources
from attnzoo.models.weights.fit import Fit, LoadReport
from attnzoo.models.weights.sources import AUTO, SAME, Converted

log = logging.getLogger(__name__)

__all__ = ["AUTO", "Fit", "LoadReport", "fit", "fit_whole", "load_weights"]


def load_weights(
    model: nn.Module,
    weights: str | Mapping[str, Tensor],
    where: str = "",
    *,
    source: str = AUTO,
    strict: bool = True,
) -> LoadReport:
    """Load a file, a folder or a state dict of any known source; logs and returns what was done.

    Position bias tables are resized (bicubic). Class heads of other classes, queries and feature levels that the file
    does not have, and attentions of another kind keep their initial values; `strict` refuses any other difference,
    otherwise what fits is loaded. On the meta device the file is only checked. Raises UserError for a file that is
    missing or does not fit; `where` is the config key of the path. Nothing is loaded then.
    """
    path = weights if isinstance(weights, str) else "the state dict"
    state = files.read(weights, where) if isinstance(weights, str) else files.unwrap(weights)
    if state is None:
        raise UserError(f"{where}: no tensors in the state dict" if where else "no tensors in the state dict")
    if not isinstance(weights, str):
        files.check_tensors(state, path, where)
    result = fit_whole(model, state, source, path, where, strict=strict)
    result.apply()
    log.info("%s: %s", path, result.report)
    return result.report


def fit_whole(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str = AUTO,
    path: str = "",
    where: str = "",
    *,
    strict: bool = True,
) -> Fit:
    """As `fit`, of weights without problems. Raises UserError for others, with the presets that they fit."""
    result = None
    try:
        result = fit(model, state, source, path, where)
        result.check(path, where, strict=strict)
    except UserError as error:
        from attnzoo.models.weights.match import explain  # imports models, which import this

        raise explain(error, result, state, source) from None
    return result


def fit(model: nn.Module, state: Mapping[str, Tensor], source: str = AUTO, path: str = "", where: str = "") -> Fit:
    """What loading a state dict would do; changes nothing. Raises UserError if none of its tensors fits."""
    targets = model.state_dict(keep_vars=True)
    found, unwrapped, outside = sources.detect(state, source)
    candidates = []
    if found is not None:
        candidates = [found.convert(unwrapped, targets, path).within(_prefix(unwrapped, state))]
    if source == AUTO:
        candidates.append(_same_names(state, targets))
    fits = [Fit(model, candidate) for candidate in candidates]
    best = max(fits, key=lambda each: len(each.values), default=None)
    if best is None or not best.values:
        prefix = f"{where}: {path}" if where else path
        if found is None:
            reason = sources.unrecognized(state, source)
        else:
            reason = f"these are weights of {found.title}, none of which fits a {type(model).__name__}"
        raise UserError(f"{prefix}: {reason}", key=where)
    best.report.skipped += outside if best is fits[0] and found is not None else []
    return best


def _prefix(unwrapped: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What `sources.detect` took from the start of all names."""
    name, tensor = next(iter(unwrapped.items()))
    key = next(key for key, other in state.items() if other is tensor and key.endswith(name))
    return key.removesuffix(name)


def _same_names(state: Mapping[str, Any], targets: Mapping[str, Tensor]) -> Converted:
    """A state dict of the same model; timm joins names with underscores where it extracts features."""
    by_joined = {name.replace(".", "_"): name for name in targets}
    tensors, origin, skipped = {}, {}, []
    for key, tensor in state.items():
        name = by_joined.get(key.removeprefix("module.").replace(".", "_"))
        if name is None:
            skipped.append(key)
        else:
            tensors[name], origin[name] = tensor, [key]
    return Converted(SAME, tensors, origin, skipped)
