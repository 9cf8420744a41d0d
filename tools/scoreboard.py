"""Published contrasts of docs/results/scoreboard.yaml beside the verdicts of docs/results; for tools/results.py."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from attnzoo.report.paired import PairedResult, compare_pairs, paired_differences
from attnzoo.report.records import read_records
from attnzoo.report.runs import find_plan
from attnzoo.rundir.metrics import PRIMARY_METRICS

AGREEMENT = {
    "better": {"better": "agrees", "worse": "disagrees", "equivalent": "disagrees"},
    "equivalent": {"better": "disagrees", "worse": "disagrees", "equivalent": "agrees"},
}
DEFORMABLE_DETR = "Zhu et al., Deformable DETR (ICLR 2021), table 1"
REFERENCES = (
    ("Faster R-CNN + FPN, 109 epochs", "42.0", DEFORMABLE_DETR),
    ("DETR, 500 epochs", "42.0", DEFORMABLE_DETR),
    ("DETR-DC5, 500 epochs", "43.3", DEFORMABLE_DETR),
    ("DETR-DC5, 50 epochs", "35.3", DEFORMABLE_DETR),
    ("Deformable DETR, 50 epochs", "43.8", DEFORMABLE_DETR),
    ("Sparse R-CNN, 300 proposals, 36 epochs", "45.0", "Sun et al., Sparse R-CNN (CVPR 2021), README of its code"),
)


@dataclass(frozen=True)
class Contrast:
    """A published effect, and where the same was asked: the first variant of `compare` against the second."""

    contrast: str
    effect: str
    source: str
    expected: str
    results: str | None = None
    compare: Sequence[str] = ()
    note: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Judged:
    """The result of a contrast, in units of `metric`."""

    result: PairedResult
    anew: PairedResult  # of the same pairs, as if they had been planned in one round
    metric: str

    @property
    def words(self) -> str:
        """The verdict in words, with the pairs it would take."""
        if self.result.verdict != "undecided" or self.result.more_pairs != 0:
            return self.result.words
        words = f"undecided after all {self.result.pairs} planned pairs"
        if self.anew.verdict != "undecided":
            return f"{words}; planned in one round they would have decided"
        return words if self.anew.more_pairs is None else f"{words}; about {self.anew.more_pairs:,} more would decide"


def judge(contrasts: Sequence[Contrast], folder: Path) -> list[Judged]:
    """The contrasts of one saved comparison, in one family of tests with what else it compares with its baseline.

    So a contrast with the baseline has the verdict of the comparison's page, in whichever order its variants are.
    """
    plan = find_plan([folder])
    records = read_records([folder])[0]
    metric = PRIMARY_METRICS[records[0].config.task]
    scores: dict[str, dict[int, float]] = {}
    for record in sorted(records, key=lambda record: record.config.seed):
        scores.setdefault(record.entry.variant_name, {})[record.config.seed] = record.final.get(metric.key, math.nan)
    asked = [tuple(contrast.compare) for contrast in contrasts]
    planned = [(variant, plan.baseline) for variant in scores if plan.baseline not in (None, variant)]
    family = asked + [pair for pair in planned if pair not in asked and pair[::-1] not in asked]
    differences = [paired_differences(scores[variant], scores[baseline]) for variant, baseline in family]
    results = compare_pairs(differences, plan.margin, looks=plan.looks)
    anew = compare_pairs(differences, plan.margin)  # after its last look a sequential comparison estimates none
    return [Judged(result, other, metric.title) for result, other in zip(results, anew, strict=True)][: len(asked)]


def _judge_all(contrasts: Sequence[Contrast], folder: Path) -> dict[str, Judged]:
    """By contrast, those whose comparison has been run."""
    judged: dict[str, Judged] = {}
    for name in {contrast.results for contrast in contrasts if contrast.results is not None}:
        if (folder / name / "results.json").exists():
            family = [contrast for contrast in contrasts if contrast.results == name]
            judged |= zip((contrast.contrast for contrast in family), judge(family, folder / name), strict=True)
    return judged


def _cells(contrast: Contrast, judged: Judged | None) -> tuple[str, str]:
    """The cells "here" and "verdict"."""
    if contrast.results is None:
        return f"not asked: {contrast.reason}", "–"
    if judged is None:
        return f"experiments/{contrast.results}.yaml has not been run", "–"
    verdict = AGREEMENT[contrast.expected].get(judged.result.verdict, judged.words)
    return f"{_difference(judged.result)} {judged.metric}. {contrast.note}".strip(), f"**{verdict}**"


def _difference(result: PairedResult) -> str:
    if result.mean is None or result.interval is None:
        return f"{result.pairs} pairs"
    low, high = result.interval
    return f"{result.mean:+.3f} [{low:+.3f}, {high:+.3f}], {result.pairs} pairs,".replace("-", "−")


def scoreboard(contrasts: list[Contrast], folder: Path) -> str:
    """The page."""
    judged = _judge_all(contrasts, folder)
    rows = [(contrast, *_cells(contrast, judged.get(contrast.contrast))) for contrast in contrasts]
    counts = {word: sum(word in verdict for *_, verdict in rows) for word in ("disagrees", "agrees", "undecided")}
    counts["agrees"] -= counts["disagrees"]
    lines = [
        "# Published contrasts, asked again",
        "",
        f"**{len(judged)} of {len(rows)} published contrasts were asked: {counts['agrees'] + counts['disagrees']} are "
        f"decided, {counts['agrees']} of them as published; {counts['undecided']} are undecided.**",
        "",
        "Published effects are of COCO or ImageNet, in percent; ours, from 0 to 1, of small detectors trained from",
        "scratch on generated scenes: the question is whether the sign carries over. Differences are of the first over",
        "the second, with 95 % intervals over pairs of equal seed. All variants of a comparison are tested as one",
        "family ([how a comparison decides](../statistics.md)). All are of seeds from 1000 on, run after variants,",
        "margin and expected signs were committed ([plan](plan.md)); refinement without two stages was decided by six",
        "further seeds, added because the first six had nearly decided it.",
        "Rows overlap: dense attention is asked three times, and refinement with two stages combines the two rows",
        "before it. Made by `make results` from [scoreboard.yaml](scoreboard.yaml) and [results](README.md).",
        "",
        "| contrast | published | here | verdict | results | source |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for contrast, here, verdict in rows:
        link = f"[{contrast.results}]({contrast.results}/comparison.md)" if here[:1] in "+−" else "–"
        lines.append(f"| {contrast.contrast} | {contrast.effect} | {here} | {verdict} | {link} | {contrast.source} |")
    lines += [
        "",
        "For reference, published COCO val AP with a ResNet-50; not run here:",
        "",
        "| detector | AP | source |",
        "| --- | --: | --- |",
        *(f"| {name} | {value} | {source} |" for name, value, source in REFERENCES),
        "",
    ]
    return "\n".join(lines)


def read_contrasts(path: Path) -> list[Contrast]:
    """All contrasts of a file like docs/results/scoreboard.yaml."""
    entries: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [Contrast(**entry) for entry in entries]
