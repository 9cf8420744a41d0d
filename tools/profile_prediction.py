"""Does the profile of an attention predict its score in a detector? For tools/results.py."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import rankdata, spearmanr

from attnzoo.probe.profile import read_profile
from attnzoo.report.records import read_records
from attnzoo.rundir.metrics import PRIMARY_METRICS

PROBES, DETECTION = "profile_probes", "profile_detection"
DRAWS = 10_000

Profile = dict[str, dict[str, float]]  # attention -> probe -> score, 0 at chance and 1 at the ceiling


def read_profiles(folder: Path) -> Profile:
    """The profile of each attention in the results of a sweep of probes."""
    profiles: Profile = {}
    for score in read_profile([folder]):
        profiles.setdefault(score.attention, {})[score.label] = score.normalized
    return profiles


def read_scores(folder: Path) -> dict[str, float]:
    """The mean last score of each variant over its seeds."""
    found: dict[str, list[float]] = {}
    for record in read_records([folder])[0]:
        assert record.entry.variant is not None
        found.setdefault(record.entry.variant, []).append(record.final[PRIMARY_METRICS[record.config.task].key])
    return {name: statistics.fmean(values) for name, values in found.items()}


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Spearman's coefficient, and the ends of its 95 % percentile interval from a bootstrap over the attentions."""
    pairs = np.array([first, second])
    draws = np.random.default_rng(0).integers(pairs.shape[1], size=(DRAWS, pairs.shape[1]))
    ranks = rankdata(pairs[:, draws], axis=-1)  # (2, draws, attentions)
    ranks -= ranks.mean(-1, keepdims=True)
    norms = np.sqrt((ranks**2).sum(-1)).prod(0)
    values = (ranks[0] * ranks[1]).sum(-1)[norms > 0] / norms[norms > 0]
    low, high = np.quantile(values, (0.025, 0.975))
    return float(spearmanr(first, second).statistic), float(low), float(high)


def page(profiles: Profile, scores: dict[str, float]) -> str:
    """The page; without `scores` only what is predicted."""
    names = sorted(profiles, key=lambda name: -statistics.fmean(profiles[name].values()))
    predictor = {name: statistics.fmean(profiles[name].values()) for name in names}
    lines = ["# Does the profile predict?", ""]
    if scores:
        lines += _correlations(profiles, predictor, scores)
    else:
        lines += ["The detection runs have not been made: this is the prediction.", ""]
    predicted, found = _ranks(predictor), _ranks(scores)
    lines += [
        "Predicted: the mean over the probes of (accuracy − chance) / (ceiling − chance), one seed",
        f"([raw]({PROBES}/results.json)).",
    ]
    if scores:
        lines.append(f"Found: AP after 800 steps in a decoder, mean of two seeds ([raw]({DETECTION}/results.json)).")
    lines += [
        "",
        "| attention | profile | predicted rank | AP | rank | moved |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for name in names:
        cells = ["", "", ""]
        if scores:
            cells = [f"{scores[name]:.3f}", f"{found[name]:g}", f"{predicted[name] - found[name]:+g}"]
        lines.append(f"| {name} | {predictor[name]:.3f} | {predicted[name]:g} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _correlations(profiles: Profile, predictor: dict[str, float], scores: dict[str, float]) -> list[str]:
    names = sorted(predictor)
    detected = [scores[name] for name in names]
    rho, low, high = rank_correlation([predictor[name] for name in names], detected)
    lines = [
        f"**Rank correlation (Spearman) of profile and AP over {len(names)} attentions: {rho:+.2f}, 95 % interval "
        f"{low:+.2f} to {high:+.2f}**",
        f"(bootstrap over the attentions, {DRAWS:,} draws). The predictor and its ranks were committed before the",
        "detection runs; the correlations of single probes are a look at the same data afterwards:",
        "",
        "| probe | rank correlation | 95 % interval |",
        "| --- | --: | --: |",
    ]
    for probe in next(iter(profiles.values())):
        rho, low, high = rank_correlation([profiles[name][probe] for name in names], detected)
        lines.append(f"| {probe} | {rho:+.2f} | {low:+.2f} to {high:+.2f} |")
    return [*lines, ""]


def _ranks(values: dict[str, float]) -> dict[str, float]:
    """1 for the largest; equal ones share their mean rank."""
    return dict(zip(values, map(float, rankdata([-value for value in values.values()])), strict=True))
