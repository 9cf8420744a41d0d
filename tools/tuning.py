"""Learning rates chosen from the tuning sweeps of docs/results, for tools/results.py."""

import statistics
from pathlib import Path

from attnzoo.report.curves import area_under_curve
from attnzoo.report.records import read_records
from attnzoo.rundir.metrics import PRIMARY_METRICS

Areas = dict[str, dict[float, list[float]]]  # variant -> learning rate -> area under the learning curve of each seed


def read_areas(folder: Path) -> Areas:
    """The areas in the results of a sweep with variants and a grid of learning rates."""
    areas: Areas = {}
    finished = [record for record in read_records([folder])[0] if record.final]
    for record in sorted(finished, key=lambda record: record.config.seed):
        key = PRIMARY_METRICS[record.config.task].key
        area = area_under_curve([(row["step"], row[key]) for row in record.metrics if key in row])
        assert record.entry.variant is not None
        assert area is not None
        rates = areas.setdefault(record.entry.variant, {})
        rates.setdefault(record.config.train.optimizer.lr, []).append(area)
    return areas


def chosen(rates: dict[float, list[float]]) -> float:
    """The rate with the largest mean area; of equal ones the smaller."""
    return max(sorted(rates), key=lambda rate: statistics.fmean(rates[rate]))


def page(sweeps: dict[str, Areas]) -> str:
    """The page, of tuning sweeps by name."""
    lines = [
        "# Learning rates",
        "",
        "Area under the learning curve (mean score over the training), mean of the seeds, by learning rate. The",
        "largest, in bold, is the rate of the variant in the experiment of that name; \\* marks one at the edge of the",
        "grid: a rate beyond it may be better still.",
    ]
    for name, areas in sweeps.items():
        rates = sorted({rate for found in areas.values() for rate in found})
        seeds = max(len(values) for found in areas.values() for values in found.values())
        lines += [
            "",
            f"## {name}",
            "",
            f"`experiments/{name}.yaml`, {seeds} seeds each ([raw]({name}/results.json)).",
            "",
            f"| variant | {' | '.join(f'{rate:g}' for rate in rates)} |",
            f"| --- |{' --: |' * len(rates)}",
        ]
        for variant, found in areas.items():
            best = chosen(found)
            edge = "\\*" if best in (rates[0], rates[-1]) else ""
            cells = [f"{statistics.fmean(found[rate]):.4f}" if rate in found else "" for rate in rates]
            cells = [f"**{cell}**{edge}" if rate == best else cell for rate, cell in zip(rates, cells, strict=True)]
            lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])
