"""Regenerate the tables and figures of docs/results from their raw files: python tools/results.py [--out FOLDER].

`FOLDER/comparison.*` come from `FOLDER/results.json`, `profile.png` of probes too; operators/tables.md and
operators/scaling.png from the records next to them, statistics.md from statistics/simulation.json, scoreboard.md from
scoreboard.yaml and the results it names, tuning.md, profile_prediction.md and
attention_shares.md from results.json. The pages of
cuda-kernels, faults and soak are written by the commands that they name, together with their raw files; operators.md
and training_speed.md are written by hand.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

from attnzoo.bench import records
from attnzoo.bench.plot import plot_scaling
from attnzoo.bench.tables import render_page
from attnzoo.probe.plot import plot
from attnzoo.probe.profile import read_profile
from attnzoo.report.compare import compare
from attnzoo.report.page.write import write_page
from attnzoo.report.runs import RESULTS
from attnzoo.report.summary import PAGE
from attnzoo.report.table import write_comparison

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "docs" / "results"
PROFILE = "profile.png"
# Experiments in attention_shares.md, by what varies.
DECODERS = (
    "ablate_points",
    "ablate_attention",
    "ablate_detector",
    "ablate_control_arms",
    "ablate_samples",
    "ablate_levels",
)
ENCODERS = ("ablate_encoder",)
TABLED = ("ops", "scaling", "models")  # kinds of records
OLD_OPTIONS = (
    "Commands are as they were run: "
    "`--operations` and `--peers` of older ones are now `--operators` and `--implementations`."
)


def regenerate(source: Path, out: Path) -> list[Path]:
    """Write what the raw files in `source` determine into `out`; returns the files.

    A page or picture of an experiment is written only if `source` has it: pages are large.
    """
    written: list[Path] = []
    for raw in sorted(source.glob(f"*/{RESULTS}")):
        folder = out / raw.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        comparison = compare([raw.parent])
        written += write_comparison(comparison, folder)
        if (raw.parent / PAGE).exists():
            write_page(comparison, folder / PAGE)
            written.append(folder / PAGE)
        if (raw.parent / PROFILE).exists():
            plot(read_profile([raw.parent]), folder / PROFILE)
            written.append(folder / PROFILE)
    operators = _operators(source / "operators", out / "operators")
    pages = [_scoreboard(source, out), *_tuning(source, out), *_prediction(source, out), _shares(source, out)]
    return [*written, *operators, *_statistics(source, out), *pages]


def _operators(source: Path, out: Path) -> list[Path]:
    found = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(source.glob("*.json"))}
    tabled = {path: records.read(path) for path, content in found.items() if content.get("kind") in TABLED}
    out.mkdir(parents=True, exist_ok=True)
    title, body = render_page(tabled, "Operators: tables").split("\n", 1)
    (out / "tables.md").write_text(f"{title}\n\n{OLD_OPTIONS}\n{body}", encoding="utf-8")
    plot_scaling(tabled[source / "scaling.json"], out / "scaling.png")
    return [out / "tables.md", out / "scaling.png"]


def _statistics(source: Path, out: Path) -> list[Path]:
    raw = json.loads((source / "statistics" / "simulation.json").read_text(encoding="utf-8"))
    page = out / "statistics.md"
    page.write_text(_tool("simulate_statistics").markdown(raw), encoding="utf-8")
    return [page]


def _scoreboard(source: Path, out: Path) -> Path:
    tool = _tool("scoreboard")
    page = out / "scoreboard.md"
    page.write_text(tool.scoreboard(tool.read_contrasts(source / "scoreboard.yaml"), source), encoding="utf-8")
    return page


def _shares(source: Path, out: Path) -> Path:
    decoders, encoders = (
        [source / name for name in names if (source / name / RESULTS).exists()] for names in (DECODERS, ENCODERS)
    )
    path = out / "attention_shares.md"
    path.write_text(_tool("attention_shares").page(decoders, encoders), encoding="utf-8")
    return path


def _tuning(source: Path, out: Path) -> list[Path]:
    sweeps = {raw.parent.name: raw.parent for raw in sorted(source.glob(f"tune_*/{RESULTS}"))}
    if not sweeps:
        return []
    tool = _tool("tuning")
    path = out / "tuning.md"
    path.write_text(tool.page({name: tool.read_areas(folder) for name, folder in sweeps.items()}), encoding="utf-8")
    return [path]


def _prediction(source: Path, out: Path) -> list[Path]:
    tool = _tool("profile_prediction")
    if not (source / tool.PROBES / RESULTS).exists():
        return []
    has_scores = (source / tool.DETECTION / RESULTS).exists()
    scores = tool.read_scores(source / tool.DETECTION) if has_scores else {}
    path = out / "profile_prediction.md"
    path.write_text(tool.page(tool.read_profiles(source / tool.PROBES), scores), encoding="utf-8")
    return [path]


def _tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for its dataclasses
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PUBLISHED, help="default: docs/results itself")
    for path in regenerate(PUBLISHED, parser.parse_args().out):
        print(path)


if __name__ == "__main__":
    main()
