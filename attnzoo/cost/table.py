"""Costs as tables."""

from collections.abc import Iterator

from attnzoo.bench.tables import DASH, TextTable
from attnzoo.cost.count import CONVENTION
from attnzoo.cost.published import Published
from attnzoo.rundir.costs import QUANTITIES, Costs, ModuleCosts, Quantity, Quartiles, VariantCosts

COUNTED = 3  # of QUANTITIES; the others are measured


def cost_tables(costs: Costs) -> list[TextTable]:
    """What every variant costs; with several variants also as ratios to the baseline."""
    quantities = [
        quantity for quantity in QUANTITIES if any(variant.values(quantity.key) for variant in costs.variants)
    ]
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
        title = f"Ratios to {costs.baseline}: median (quartiles) over rounds"
        tables.append(TextTable(title, ("variant", *header), ratios, 1))
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
    difference = f"{100 * figures.difference(variant):+.1f} %"
    rows = [
        (
            "params, millions",
            f"{variant.params / 1e6:.1f}",
            f"{figures.params:g}",
            f"{_percent(variant, figures):+.1f} %",
        ),
        ("GFLOPs", f"{variant.gflops:.2f}", f"{figures.gflops:g}", difference),
    ]
    notes = (figures.source, *([f"GFLOPs: {figures.explanation}"] if figures.explanation else []))
    return TextTable(f"Published at {_size(variant)}", ("", "counted", "published", "difference"), rows, 1, notes)


def _percent(variant: VariantCosts, figures: Published) -> float:
    return 100 * (variant.params / 1e6 / figures.params - 1)


def _title(quantity: Quantity, costs: Costs) -> str:
    batches = {variant.batch_size for variant in costs.variants}
    if quantity.key in ("throughput", "training") and len(batches) == 1:
        return f"{quantity.title}, batch {batches.pop()}"
    return quantity.title


def _median(quantity: Quantity, quartiles: Quartiles | None) -> str:
    return DASH if quartiles is None else format(quartiles.median, quantity.format_spec)


def _ratio(costs: Costs, variant: VariantCosts, quantity: Quantity) -> str:
    ratios = costs.ratios(variant.name, quantity.key)
    if ratios is None:
        return DASH
    if variant.name == costs.baseline or len(variant.values(quantity.key)) == 1:
        return f"{ratios.median:.2f}"
    return f"{ratios.median:.2f} ({ratios.low:.2f}–{ratios.high:.2f})"


def _notes(costs: Costs) -> Iterator[str]:
    yield f"{CONVENTION}; extra: what the implementation adds to the algorithm."
    sizes = dict.fromkeys(map(_size, costs.variants))
    if len(costs.variants) > 1 and len(sizes) == 1:
        yield f"Images of {next(iter(sizes))} pixels."
    rounds = [
        len(samples)
        for variant in costs.variants[:1]
        for samples in (variant.latency, variant.throughput, variant.training)
    ]
    if any(rounds):
        machine = costs.environment["machine"]
        device = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
        threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
        yield (
            f"Medians over {min(filter(None, rounds))} to {max(rounds)} rounds, in {costs.seconds:.0f} s, on {device} "
            f"({threads}, {costs.environment['operators']} kernels)."
        )
    yield from costs.notes


def _size(variant: VariantCosts) -> str:
    return f"{variant.size[0]} x {variant.size[1]}"
