"""docs/experiments.md against the raw files in docs/results: tables, and differences called more than chance."""

import csv
import itertools
import json
import math
import re
from pathlib import Path

import pytest

from attnzoo.report.paired import compare_pairs

DOCS = Path(__file__).parents[2] / "docs"
IMAGES = 1000  # of the validation set of digits
CLASSIFICATION = {
    "DAT against Swin": "dat_vs_swin",
    "Offsets and bias": "ablate_dat_offsets_bias",
    "Stages": "ablate_dat_stages",
    "Range": "ablate_dat_range",
    "Groups": "ablate_dat_groups",
}


def section(title: str) -> str:
    text = (DOCS / "experiments.md").read_text(encoding="utf-8")
    return re.split(r"^## ", text.split(f"\n## {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def scores(experiment: str, metric: str) -> list[float]:
    with (DOCS / "results" / experiment / "comparison.csv").open(encoding="utf-8") as file:
        return [float(row[metric]) for row in csv.DictReader(file)]


def z_score(first: float, second: float) -> float:
    """Of the difference of two proportions, each of IMAGES images."""
    mean = (first + second) / 2
    return abs(first - second) / math.sqrt(2 * mean * (1 - mean) / IMAGES)


@pytest.mark.parametrize("title", CLASSIFICATION)
def test_differences_of_classifiers(title: str) -> None:
    """Every pair that chance does not explain is named with its z, and every z named is that of a pair."""
    pairs = itertools.combinations(scores(CLASSIFICATION[title], "top1"), 2)
    computed = [z_score(*pair) for pair in pairs]
    named = [
        float(number)
        for numbers in re.findall(r"z = ([\d.]+\d(?: and [\d.]+\d)*)", section(title))
        for number in numbers.split(" and ")
    ]
    for z in computed:
        assert z < 1.96 or any(abs(z - number) < 0.06 for number in named), f"not named: z = {z:.2f}"
    for number in named:
        assert any(abs(z - number) < 0.06 for z in computed), f"no pair has z = {number}"


@pytest.mark.parametrize(
    ("title", "experiment", "metric"),
    [(title, experiment, "top1") for title, experiment in CLASSIFICATION.items()]
    + [("Backbones", "backbones", "AP"), ("Every attention in every slot", "cross_slots", "AP")],
)
def test_tables_show_the_raw_scores(title: str, experiment: str, metric: str) -> None:
    rows = [line for line in section(title).splitlines() if line.startswith("|")]
    column = [cell.strip() for cell in rows[0].split("|")].index("AP" if metric == "AP" else "top-1")
    shown = [row.split("|")[column].strip() for row in rows[2:]]
    assert sorted(shown) == sorted(f"{score:.3f}" for score in scores(experiment, metric))


def test_scores_before_and_after_the_changes_of_training_speed() -> None:
    folder = DOCS / "results"
    runs = json.loads((folder / "training_speed" / "scores.json").read_text())["runs"]
    (result,) = compare_pairs([[run["b88f638"] - run["30419c1"] for run in runs]], margin=0.03)
    assert (result.verdict, result.pairs) == ("equivalent", 10)
    assert result.interval is not None
    low, high = result.interval
    sentence = f"{result.mean:+.3f} AP, 95 % interval {low:+.3f} to {high:+.3f}, 10 pairs".replace("-", "−")
    assert sentence in (folder / "training_speed.md").read_text()
