"""`tools/simulate_statistics.py`: its vectorised verdicts, its table, and what its raw results must show."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from attnzoo.report.paired import compare_pairs
from attnzoo.report.records import read_records
from attnzoo.report.sequential import planned_looks

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("simulate_statistics", ROOT / "tools" / "simulate_statistics.py")
simulation = importlib.util.module_from_spec(spec)
sys.modules["simulate_statistics"] = simulation
spec.loader.exec_module(simulation)

CODES = {"undecided": 0, "better": 1, "worse": -1, "equivalent": 2}


@pytest.mark.parametrize("looks", [(4,), (10,), planned_looks(4, 10, 2)], ids=str)
@pytest.mark.parametrize("margin", [None, 1.0])
def test_verdicts_are_those_of_compare_pairs(looks: tuple[int, ...], margin: float | None) -> None:
    effects = np.array([0.0, 0.7, -2.5, 3.0])[:, None]
    tables = np.random.default_rng(3).standard_normal((40, 4, looks[-1])) * 0.8 + effects
    verdicts, _ = simulation.decide(tables, looks, margin)
    for differences, codes in zip(tables, verdicts, strict=True):
        results = compare_pairs(list(differences), margin, looks=None if len(looks) == 1 else looks)
        assert [CODES[result.verdict] for result in results] == codes.tolist()
    assert len(set(verdicts.ravel().tolist())) >= 3  # the tables are not all alike


def test_pairs_at_the_verdict() -> None:
    tables = (
        np.zeros((1, 2, 6)) + np.array([0.0, 5.0])[:, None] + 0.1 * np.random.default_rng(0).standard_normal((1, 2, 6))
    )
    _, pairs = simulation.decide(tables, (4, 5, 6))
    assert pairs.tolist() == [[6, 4]]


@pytest.mark.parametrize("noise", ["normal", "gamma", "exponential", "lognormal"])
def test_noise_has_mean_zero_and_variance_one(noise: str) -> None:
    values = simulation.draw_noise(np.random.default_rng(0), noise, (2_000_000,))
    assert values.mean() == pytest.approx(0, abs=0.005)
    assert values.std() == pytest.approx(1, abs=0.03)


def test_deviations_and_skewness_of_own_runs() -> None:
    """The numbers of docs/statistics.md."""
    scores: dict[str, dict[int, float]] = {}
    for run in read_records([ROOT / "docs/results/ablate_attention_untuned"])[0]:
        scores.setdefault(run.entry.variant_name, {})[run.config.seed] = run.final["val/AP"]
    values = {name: np.array([by_seed[seed] for seed in range(10)]) for name, by_seed in scores.items()}
    skewness = [stats.skew(values[name] - values["dense"], bias=False) for name in values if name != "dense"]
    assert (round(min(skewness), 1), round(max(skewness), 1)) == (-1.1, 1.1)
    assert np.abs(skewness).max() < simulation.OWN_SKEWNESS
    exponential = stats.skew(np.random.default_rng(0).exponential(size=(20_000, 10)), axis=1, bias=False)
    assert round(exponential.mean(), 1) == 1.2
    page = (ROOT / "docs" / "statistics.md").read_text()
    for one, other in (("deform", "ms_deform"), ("dense", "deform"), ("dense", "ms_deform")):
        paired = np.std(values[one] - values[other], ddof=1)
        independent = np.hypot(np.std(values[one], ddof=1), np.std(values[other], ddof=1))
        correlation = f"{np.corrcoef(values[one], values[other])[0, 1]:+.2f}".replace("-", "−")
        assert f"| `{one}`, `{other}` | {correlation} | {paired:.3f} AP | {independent:.3f} AP |" in page


def test_mixture_levels_have_the_bayes_factor_of_the_definition() -> None:
    looks, level = (8, 20), 0.025
    for n, p_value in zip(looks, simulation.mixture_levels(looks, level), strict=True):
        squared = stats.t.isf(p_value, n - 1) ** 2
        log_factor = n / 2 * (np.log1p(squared / (n - 1)) - np.log1p(squared / (n - 1) / (1 + n))) - np.log1p(n) / 2
        assert log_factor == pytest.approx(np.log(1 / (2 * level)))


def test_the_table_is_that_of_the_raw_file() -> None:
    raw = json.loads(simulation.RAW.read_text())
    assert simulation.TABLE.read_text() == simulation.markdown(raw)
    assert simulation.misses(raw) == []


def test_a_miss_is_found() -> None:
    raw = json.loads(simulation.RAW.read_text())
    raw["coverage"][0]["t"] = 0.92
    raw["sequential"][0]["false difference"] = 0.2
    assert len(simulation.misses(raw)) == 2
