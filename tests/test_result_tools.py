"""Pages of docs/results about learning rates, predicted profiles and shares of attention."""

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import spearmanr

from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.load import Experiment

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "docs" / "results"
USERS = {"tune_encoder": ["ablate_encoder", "ablate_encoder_dcn"]}  # of tuned rates
TUNED = sorted(path.parent.name for path in PUBLISHED.glob("tune_*/results.json"))
RATE = "train.optimizer.lr"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def variants(*names: str) -> dict[str, dict]:
    return {name: options for file in names for name, options in config(file).sweep.variants.items()}


def config(name: str) -> ExperimentConfig:
    return Experiment(ROOT / "experiments" / f"{name}.yaml").config()


def test_the_demo_has_the_learning_rates_that_were_chosen() -> None:
    """Its variants are those of two files."""
    tuning, demo = tool("tuning"), config("ablate_points")
    areas = tuning.read_areas(PUBLISHED / "tune_attention") | tuning.read_areas(PUBLISHED / "tune_points")
    for variant, name in {"points=4": "ms_deform", "points=1": "points=1", "dense": "dense"}.items():
        used = demo.sweep.variants[variant].get(RATE, demo.train.optimizer.lr)
        assert used == tuning.chosen(areas[name]), variant


@pytest.mark.parametrize("name", [name for name in TUNED if name != "tune_points"])
def test_experiments_have_the_learning_rates_that_were_chosen(name: str) -> None:
    tuning = tool("tuning")
    areas = tuning.read_areas(PUBLISHED / name)
    tuned, used = variants(name), variants(*USERS.get(name, [name.replace("tune_", "ablate_")]))
    assert {variant: options | {RATE: tuning.chosen(areas[variant])} for variant, options in tuned.items()} == used
    assert {len(seeds) for rates in areas.values() for seeds in rates.values()} == {2}


def test_of_equal_areas_the_smaller_rate_is_chosen_and_edges_are_marked() -> None:
    tuning = tool("tuning")
    assert tuning.chosen({4e-3: [0.25, 0.75], 2e-3: [0.5], 1e-3: [0.1]}) == 2e-3
    page = tuning.page({"tune_x": {"a": {1e-3: [0.1], 2e-3: [0.3], 4e-3: [0.2]}, "b": {1e-3: [0.5], 2e-3: [0.3]}}})
    assert "| a | 0.1000 | **0.3000** | 0.2000 |" in page
    assert "| b | **0.5000**\\* | 0.3000 |  |" in page


def test_rank_correlation_is_scipys_and_its_interval_that_of_a_bootstrap() -> None:
    prediction = tool("profile_prediction")
    generator = np.random.default_rng(1)
    first = generator.normal(size=22).round(1)  # with ties
    second = first + generator.normal(size=22)
    rho, low, high = prediction.rank_correlation(first, second)
    assert rho == pytest.approx(spearmanr(first, second).statistic)
    draws = np.random.default_rng(0).integers(22, size=(prediction.DRAWS, 22))[:300]
    slow = np.quantile([spearmanr(first[draw], second[draw]).statistic for draw in draws], (0.025, 0.975))
    assert low == pytest.approx(slow[0], abs=0.08)
    assert high == pytest.approx(slow[1], abs=0.08)
    assert low < rho < high


def test_a_prediction_is_shown_without_scores_and_then_beside_them() -> None:
    prediction = tool("profile_prediction")
    profiles = {"a": {"read": 0.9, "find": 0.5}, "b": {"read": 0.1, "find": 0.2}, "c": {"read": 0.3, "find": 0.4}}
    assert "| a | 0.700 | 1 |  |  |  |" in prediction.page(profiles, {})
    page = prediction.page(profiles, {"a": 0.1, "b": 0.3, "c": 0.2})
    assert "over 3 attentions: -1.00" in page
    assert "| a | 0.700 | 1 | 0.100 | 3 | -2 |" in page


def test_verdicts_of_contrasts_do_not_depend_on_their_order() -> None:
    scoreboard = tool("scoreboard")
    contrasts = scoreboard.read_contrasts(PUBLISHED / "scoreboard.yaml")
    family = [contrast for contrast in contrasts if contrast.results == "ablate_detector"]
    turned = [dataclasses.replace(contrast, compare=contrast.compare[::-1]) for contrast in family]
    results, reversed_results = (
        [judged.result for judged in scoreboard.judge(each, PUBLISHED / "ablate_detector")] for each in (family, turned)
    )
    opposite = {"better": "worse", "worse": "better"}
    assert {"better", "undecided"} <= {result.verdict for result in results}
    assert [opposite.get(result.verdict, result.verdict) for result in results] == [
        result.verdict for result in reversed_results
    ]


def test_verdicts_are_those_of_the_comparison() -> None:
    scoreboard = tool("scoreboard")
    contrasts = scoreboard.read_contrasts(PUBLISHED / "scoreboard.yaml")
    contrast = next(contrast for contrast in contrasts if contrast.results == "ablate_levels")
    (judged,) = scoreboard.judge([contrast], PUBLISHED / "ablate_levels")
    page = (PUBLISHED / "ablate_levels" / "comparison.md").read_text()
    assert judged.result.verdict == "undecided"  # as one of two variants; alone it is "better"
    assert "strides_8_16 against stride_8 is undecided after all planned pairs" in page


def test_undecided_contrasts_say_how_many_pairs_they_would_take() -> None:
    scoreboard = tool("scoreboard")
    contrasts = scoreboard.read_contrasts(PUBLISHED / "scoreboard.yaml")
    page = scoreboard.scoreboard(contrasts, PUBLISHED)
    undecided = [line for line in page.splitlines() if line.startswith("|") and "undecided after" in line]
    assert undecided
    more = r"(about \d+ more would decide|planned in one round they would have decided)"
    assert all(re.search(rf"\*\*undecided after all \d+ planned pairs; {more}\*\*", line) for line in undecided)
