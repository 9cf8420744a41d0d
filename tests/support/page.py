"""Comparisons for tests of the page, from the committed raw results of ten runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attnzoo.report.compare import compare
from attnzoo.rundir.costs import Costs, VariantCosts, write_costs

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "ablate_attention_untuned" / "results.json"
HOSTILE = '<script>alert("1")</script> R&D'


def write_results(folder: Path, change: Callable[[dict[str, Any]], object] = lambda content: None) -> Path:
    """A folder with the dense and deform runs of the committed results, four seeds each, as `change` leaves them."""
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    content["runs"] = [run for run in content["runs"] if run["variant"] in ("dense", "deform") and run["seed"] < 4]
    change(content)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def rename(content: dict[str, Any], old: str, new: str) -> None:
    """Rename a variant."""
    for run in content["runs"]:
        if run["variant"] == old:
            run["variant"] = run["variant_name"] = new


def add_costs(folder: Path) -> None:
    """Costs of both variants: deform has twice the latency, and 1.5 times the training step."""
    digests = {variant.name: variant.digest for variant in compare([folder]).variants}
    variants = [
        VariantCosts(
            name, digest, (64, 64), 12, 250_000, 250_000, 0.02, 0.0,
            latency=(0.01 * factor, 0.02 * factor, 0.03 * factor), throughput=(0.1, 0.1, 0.1),
            training=(0.1 * (1 + factor) / 2,) * 3, inference_memory=2**20, training_memory=5 * 2**20,
        )
        for factor, (name, digest) in enumerate(digests.items(), start=1)
    ]  # fmt: skip
    write_costs(Costs("dense", tuple(variants), environment={"machine": {"cpu": "test CPU"}}), folder)
