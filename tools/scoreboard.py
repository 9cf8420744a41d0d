"""Writes docs/scoreboard.md: published contrasts of docs/scoreboard.yaml beside the verdicts of docs/results."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import yaml

from attnzoo.report.compare import compare
from attnzoo.report.pairs import PairedRow

ROOT = Path(__file__).parents[1]
AGREEMENT = {
    "better": {"better": "agrees", "worse": "disagrees", "equivalent": "disagrees"},
    "equivalent": {"better": "disagrees", "worse": "disagrees", "equivalent": "agrees"},
}
REFERENCES = (
    ("Faster R-CNN + FPN, 109 epochs", "42.0"),
    ("DETR, 500 epochs", "42.0"),
    ("DETR-DC5, 500 epochs", "43.3"),
    ("DETR-DC5, 50 epochs", "35.3"),
    ("Deformable DETR, 50 epochs", "43.8"),
)


@dataclass(frozen=True)
class Contrast:
    """A published effect, and where the same was asked; `compare`: the variant and its baseline."""

    contrast: str
    effect: str
    source: str
    expected: str
    results: str | None = None
    compare: tuple[str, str] | None = None
    note: str = ""
    reason: str = ""

    def row(self, folder: Path) -> tuple[str, str]:
        """The cells "here" and "verdict"."""
        if self.results is None or self.compare is None:
            return f"not asked: {self.reason}", "–"
        if not (folder / self.results / "results.json").exists():
            return f"experiments/{self.results}.yaml has not been run", "–"
        variant, baseline = self.compare
        paired = compare([folder / self.results], baseline=baseline).paired
        assert paired is not None
        row = next(row for row in paired.rows if row.name == variant)
        verdict = AGREEMENT[self.expected].get(row.final.verdict, row.final.words)
        return f"{_difference(row)} {paired.metric.title}. {self.note}".strip(), f"**{verdict}**"


def _difference(row: PairedRow) -> str:
    final = row.final
    if final.mean is None or final.interval is None:
        return f"{final.pairs} pairs"
    low, high = final.interval
    return f"{final.mean:+.3f} [{low:+.3f}, {high:+.3f}], {final.pairs} pairs,".replace("-", "−")


def scoreboard(contrasts: list[Contrast], folder: Path) -> str:
    """The page."""
    rows = [(contrast, *contrast.row(folder)) for contrast in contrasts]
    counts = {word: sum(word in verdict for *_, verdict in rows) for word in ("disagrees", "agrees", "undecided")}
    counts["agrees"] -= counts["disagrees"]
    lines = [
        "# Published contrasts, asked again",
        "",
        f"**Of {len(rows)} published contrasts {counts['agrees']} come out with the published sign here, "
        f"{counts['disagrees']} do not, {counts['undecided']} are undecided; the others were not asked.**",
        "",
        "Published effects are of COCO or ImageNet, ours of small detectors trained from scratch on generated scenes:",
        "the question is whether the sign carries over. Differences are of the first over the second, with 95 %",
        "intervals over pairs of equal seed; verdicts follow [statistics.md](statistics.md), corrected for all",
        "variants of the table they are from. Configs, margins and expected signs were committed before the seeds",
        "from 1000 on were run. Made by `python tools/scoreboard.py` from [scoreboard.yaml](scoreboard.yaml) and",
        "[results](results).",
        "",
        "| contrast | published | here | verdict | results | source |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for contrast, here, verdict in rows:
        link = f"[{contrast.results}](results/{contrast.results}/comparison.md)" if here[:1] in "+−" else "–"
        lines.append(f"| {contrast.contrast} | {contrast.effect} | {here} | {verdict} | {link} | {contrast.source} |")
    lines += [
        "",
        "For reference, published COCO val AP with a ResNet-50 (Zhu et al., Deformable DETR, table 1); not run here:",
        "",
        "| detector | AP |",
        "| --- | --: |",
        *(f"| {name} | {value} |" for name, value in REFERENCES),
        "",
    ]
    return "\n".join(lines)


def read_contrasts(path: Path) -> list[Contrast]:
    """All contrasts of a file like docs/scoreboard.yaml."""
    return [
        Contrast(**{key: tuple(value) if key == "compare" else value for key, value in entry.items()})
        for entry in yaml.safe_load(path.read_text(encoding="utf-8"))
    ]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    text = scoreboard(read_contrasts(ROOT / "docs" / "scoreboard.yaml"), ROOT / "docs" / "results")
    (ROOT / "docs" / "scoreboard.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
