"""Costs as tables."""

from collections.abc import Iterator

from attnzoo.bench.tables import DASH, TextTable
from attnzoo.cost.count import CONVENTION
from attnzoo.cost.published import Published
from attnzoo.rundir.costs import QUANTITIES, Costs, ModuleCosts, Quantity, Quartiles, VariantCosts


def cost_tables(costs: Costs) -> list[TextTable]:
    """What every variant costs; with several variants also as ratios to the baseline."""
    quantities = [quantity for quantity in QUANTITIES if _is_shown(quantity, costs)]
    rows = [
        (variant.name, *(_median(quantity, costs.quartiles(variant.name, quantity.key)) for quantity in quantities))
        for variant in costs.variants
    ]
    notes = tuple(_notes(costs))
    title = "Costs" if len(costs.variants) > 1 else f"Cost at {_size(costs.variants[0])}"
    header = tuple(_title(quantity, costs) for quantity in quantities)
    tables = [TextTable(title, ("variant", *header), rows, 1, notes)]
    if len(costs.variants) > 1:
        ratios = [
            (variant.name, *(_ratio(costs, variant, quantity) for quantity in quantities)) for variant in costs.variants
        ]
        header = tuple(quantity.title.partition(",")[0] for quantity in quantities)
        over_rounds = ("Medians (quartiles) of the ratios in each round.",) if _rounds(costs) else ()
        tables.append(TextTable(f"Ratios to {costs.baseline}", ("variant", *header), ratios, 1, over_rounds))
    return tables


def module_table(variant: VariantCosts) -> TextTable:
    """Parameters and GFLOPs of the parts of a model, and their sum."""
    total = ModuleCosts("total", variant.params, variant.gflops, variant.extra_gflops)
    rows = []
    for module in (*variant.modules, total):
        share = f"{100 * module.gflops / variant.gflops:.1f}" if variant.gflops else DASH
        rows.append((module.name, f"{module.params:,}", f"{module.gflops:.4g}", share, f"{module.extra_gflops:.3g}"))
    header = ("part", "params", "GFLOPs", "%", "extra GFLOPs")
    return TextTable(f"{variant.name} at {_size(variant)}, by part", header, rows, 1)


def published_table(variant: VariantCosts, figures: Published) -> TextTable:
    """The counted parameters and GFLOPs beside the published ones."""
    pairs = {"params, millions": (variant.params / 1e6, figures.params), "GFLOPs": (variant.gflops, figures.gflops)}
    rows = [
        (name, f"{counted:.4g}", f"{known:g}", f"{100 * (counted / known - 1):+.1f} %")
        for name, (counted, known) in pairs.items()
    ]
    notes = (figures.source, *([f"GFLOPs: {figures.explanation}"] if figures.explanation else []))
    return TextTable(f"Published at {_size(variant)}", ("", "counted", "published", "difference"), rows, 1, notes)


def _is_shown(quantity: Quantity, costs: Costs) -> bool:
    """Whether a quantity was measured, and for extra GFLOPs, whether there are any."""
    values = [value for variant in costs.variants for value in variant.values(quantity.key)]
    return any(values) if quantity.key == "extra_gflops" else bool(values)


def _title(quantity: Quantity, costs: Costs) -> str:
    batches = {variant.batch_size for variant in costs.variants}
    if quantity.key in ("throughput", "training") and len(batches) == 1:
        return f"{quantity.title}, batch {batches.pop()}"
    return quantity.title


def _median(quantity: Quantity, quartiles: Quartiles | None) -> str:
    return DASH if quartiles is None else quantity.format(quartiles.median)


def _ratio(costs: Costs, variant: VariantCosts, quantity: Quantity) -> str:
    ratios = costs.ratios(variant.name, quantity.key)
    if ratios is None:
        return DASH
    if variant.name == costs.baseline or len(variant.values(quantity.key)) == 1:
        return f"{ratios.median:.2f}"
    return f"{ratios.median:.2f} ({ratios.low:.2f}–{ratios.high:.2f})"


def _notes(costs: Costs) -> Iterator[str]:
    extra = any(variant.extra_gflops for variant in costs.variants)
    yield CONVENTION + ("; extra: what the implementation adds to the algorithm, or saves." if extra else ".")
    sizes = dict.fromkeys(map(_size, costs.variants))
    if len(costs.variants) > 1 and len(sizes) == 1:
        yield f"Images of {next(iter(sizes))} pixels."
    rounds = _rounds(costs)
    if rounds:
        machine = costs.environment["machine"]
        device = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
        threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
        span = " to ".join(map(str, dict.fromkeys((min(rounds), max(rounds)))))
        yield (
            f"Medians over {span} rounds, in {costs.seconds:.0f} s, on {device} "
            f"({threads}, {costs.environment['operators']} kernels)."
        )
    yield from costs.notes


def _rounds(costs: Costs) -> list[int]:
    """The numbers of rounds of what was timed."""
    first = costs.variants[0]
    return [len(samples) for samples in (first.latency, first.throughput, first.training) if samples]


def _size(variant: VariantCosts) -> str:
    return f"{variant.size[0]} x {variant.size[1]}"
