"""costs.json: what the variants of a sweep cost, measured together. Imports neither torch nor omegaconf."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from attnzoo.errors import UserError, describe
from attnzoo.files import JSON_ERRORS, read_json, reason
from attnzoo.rundir.folder import atomic_write, has_types

FILENAME = "costs.json"
FORMAT = 1
MIB = 2**20
# Fields and types of the file, of a variant and of a module.
COSTS: dict[str, Any] = {
    "baseline": str,
    "variants": list,
    "notes": list,
    "seconds": int | float,
    "environment": dict,
}
MODULE: dict[str, Any] = {"name": str, "params": int, "gflops": int | float, "extra_gflops": int | float}
VARIANT: dict[str, Any] = MODULE | {
    "digest": str,
    "size": list,
    "batch_size": int,
    "trainable": int,
    "modules": list,
    "latency": list,
    "throughput": list,
    "training": list,
    "inference_memory": int | None,
    "training_memory": int | None,
}


class Quartiles(NamedTuple):
    """Lower quartile, median and upper quartile; all equal for a single value."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Quantity:
    """A cost: its key in `VariantCosts.values`, and its title in tables."""

    key: str
    title: str

    def format(self, value: float) -> str:
        """A value for tables, with three or four digits; parameters with all."""
        if value >= 1000 or self.key == "params":
            return f"{value:,.0f}"
        return f"{value:.4g}" if self.key == "gflops" else f"{value:.3g}"


# Those after the first three are measured: one value per round.
QUANTITIES = (
    Quantity("params", "params"),
    Quantity("gflops", "GFLOPs"),
    Quantity("extra_gflops", "extra GFLOPs"),
    Quantity("latency", "ms, batch 1"),
    Quantity("throughput", "images / s"),
    Quantity("training", "ms / training step"),
    Quantity("inference_memory", "inference MiB"),
    Quantity("training_memory", "training MiB"),
)


@dataclass(frozen=True)
class ModuleCosts:
    """Parameters and GFLOPs of a part of a model; the parts sum to the model."""

    name: str
    params: int
    gflops: float
    extra_gflops: float


@dataclass(frozen=True)
class VariantCosts:
    """What one variant costs.

    - `digest`: of the config; "" for a preset
    - `size`: (h, w) of the images in pixels; `batch_size`: images per process in a training step
    - `gflops`: by the algorithm; `extra_gflops`: what the implementation adds, or if negative, saves
    - `latency`: seconds of inference on one image, one sample per round; `throughput`: on `batch_size` images;
      `training`: of one training step. Empty if not measured; in round i all variants were measured in turn.
    - `inference_memory`, `training_memory`: peak bytes of the last two above weights and optimiser state, or None
    """

    name: str
    digest: str
    size: tuple[int, int]
    batch_size: int
    params: int
    trainable: int
    gflops: float
    extra_gflops: float
    modules: tuple[ModuleCosts, ...] = ()
    latency: tuple[float, ...] = ()
    throughput: tuple[float, ...] = ()
    training: tuple[float, ...] = ()
    inference_memory: int | None = None
    training_memory: int | None = None

    def values(self, key: str) -> list[float]:
        """The values of a quantity of QUANTITIES, in its unit: one per round, or one; none if not measured."""
        value = getattr(self, key)
        if key in ("latency", "training"):
            return [1000 * seconds for seconds in value]
        if key == "throughput":
            return [self.batch_size / seconds for seconds in value]
        if value is None:
            return []
        return [value / MIB if key.endswith("memory") else float(value)]


@dataclass(frozen=True)
class Costs:
    """The costs of all variants, and how they were measured.

    `environment`: command, machine, versions, kernels and threads. `seconds`: what measuring took.
    """

    baseline: str
    variants: tuple[VariantCosts, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    environment: dict[str, Any] = field(default_factory=dict)

    def variant(self, name: str) -> VariantCosts | None:
        """The costs of the variant `name`; None if it was not measured."""
        return next((variant for variant in self.variants if variant.name == name), None)

    def quartiles(self, name: str, key: str) -> Quartiles | None:
        """A quantity of a variant over the rounds, in its unit; None if not measured."""
        variant = self.variant(name)
        return _quartiles(variant.values(key)) if variant else None

    def ratios(self, name: str, key: str) -> Quartiles | None:
        """A quantity of a variant as a ratio to the baseline's in the same round; None if not measured or 0 there."""
        variant, baseline = self.variant(name), self.variant(self.baseline)
        if variant is None or baseline is None:
            return None
        pairs = zip(variant.values(key), baseline.values(key), strict=False)
        return _quartiles([ours / theirs for ours, theirs in pairs if theirs])


def _quartiles(values: Sequence[float]) -> Quartiles | None:
    if not values:
        return None
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))


def write_costs(costs: Costs, folder: Path) -> Path:
    """Write costs.json in the folder of a sweep; returns its path."""
    path = folder / FILENAME
    with atomic_write(path) as file:
        json.dump({"format": FORMAT, **asdict(costs)}, file, indent=1)
        file.write("\n")
    return path


def read_costs(folder: Path) -> Costs | None:
    """The costs in the folder of a sweep; None if they were not measured. Raises UserError for a corrupt file."""
    path = folder / FILENAME
    mend = f"delete it, and measure again with `attnzoo cost {folder}`"
    try:
        content = read_json(path)
    except FileNotFoundError:
        return None
    except JSON_ERRORS as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); {mend}") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise UserError(f"{path}: not costs of format {FORMAT}; {mend}")
    try:
        costs = _costs(content)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: corrupt ({describe(error)}); {mend}") from None
    return costs


def _costs(values: dict[str, Any]) -> Costs:
    """Raises TypeError, ValueError, KeyError or AttributeError for what are no costs."""
    costs = Costs(**values)
    variants, notes = tuple(map(_variant, costs.variants)), tuple(costs.notes)
    texts = [costs.baseline, *notes, *(variant.name for variant in variants)]
    if not has_types(values, COSTS) or not all(isinstance(text, str) for text in texts):
        raise ValueError("a field of another type")
    return replace(costs, variants=variants, notes=notes)


def _variant(values: Any) -> VariantCosts:
    variant = VariantCosts(**values)
    height, width = variant.size
    measured = [height, width, *variant.latency, *variant.throughput, *variant.training]
    numbers = {str(index): value for index, value in enumerate(measured)}
    are_numbers = has_types(numbers, dict.fromkeys(numbers, int | float))
    has_fields = has_types(values, VARIANT) and all(has_types(module, MODULE) for module in values["modules"])
    if not are_numbers or not has_fields or min(numbers.values()) <= 0:
        raise ValueError(f"a field of variant {variant.name!r} of another type, or a time that is not positive")
    return replace(
        variant,
        size=(height, width),
        modules=tuple(ModuleCosts(**module) for module in values["modules"]),
        latency=tuple(variant.latency),
        throughput=tuple(variant.throughput),
        training=tuple(variant.training),
    )
