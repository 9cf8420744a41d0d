"""README and guide against the raw results, links, and Markdown that the site renders otherwise than GitHub."""

import importlib.util
import json
import re
import statistics
from collections import defaultdict
from pathlib import Path

import pytest
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (DOCS / "guide.md").read_text(encoding="utf-8")
spec = importlib.util.spec_from_file_location("docs_figures", ROOT / "tools" / "docs_figures.py")
docs_figures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs_figures)
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def table(text: str, heading: str) -> dict[str, list[str]]:
    """The rows of the first table below a heading, by their first cell."""
    lines = text.split(f"\n## {heading}\n")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_name_existing_files(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
        file = path.parent / target / "README.md" if (path.parent / target).is_dir() else path.parent / target
        assert ":" in target or file.is_file(), target


@pytest.mark.parametrize("path", PAGES[:2] + PAGES[3:], ids=page_id)  # CHANGELOG.md has the names of its time
def test_named_tests_exist(path: Path) -> None:
    files = [file.relative_to(ROOT).as_posix() for file in (ROOT / "tests").rglob("*.py")]
    for name in re.findall(r"\btests/[\w./-]+\.py|\btest_\w+\.py", path.read_text(encoding="utf-8")):
        assert any(f"/{file}".endswith(f"/{name}") for file in files), name


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_lists_are_read_alike_by_both_renderers(path: Path) -> None:
    """In the site a list needs an empty line before it."""
    previous = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if re.match(r"([-*]|\d+\.) ", line):
            inside = previous == "" or previous.startswith(" ") or re.match(r"([-*]|\d+\.) ", previous)
            assert inside, f"{path}:{number}: no empty line before the list"
        previous = line


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 120


def test_operator_of_the_readme() -> None:
    scope: dict = {}
    exec(PYTHON[0], scope)
    assert scope["out"].shape == (1, 300, 256)


@pytest.mark.slow
def test_model_of_the_readme() -> None:
    scope: dict = {}
    exec(PYTHON[1], scope)
    assert scope["output"].boxes[-1].shape == (1, 300, 4)


def of_verdict(experiment: str, variant: str) -> tuple[str, ...]:
    """The difference from the baseline and the ends of its interval, without signs, the smaller end first."""
    saved = (DOCS / "results" / experiment / "comparison.md").read_text(encoding="utf-8")
    pattern = rf"^- {variant} is (?:better|worse) than .*?: [-+]([\d.]+) .*, 95 % interval [-+]([\d.]+) to [-+]([\d.]+)"
    ((mean, *ends),) = re.findall(pattern, saved, re.MULTILINE)
    return mean, *sorted(ends)


@pytest.mark.parametrize("text", [README, GUIDE], ids=["README", "guide"])
@pytest.mark.parametrize(
    ("experiment", "variant", "whole"),
    [
        ("ablate_attention", "deform", [README]),
        ("ablate_attention", "ms_deform", [README]),
        ("ablate_detector", "one_point", [README, GUIDE]),
        ("ablate_detector", "one_stage", [README, GUIDE]),
    ],
)
def test_differences_are_those_of_the_verdicts(text: str, experiment: str, variant: str, whole: list[str]) -> None:
    """In `whole` with their intervals."""
    numbers = of_verdict(experiment, variant)
    assert all(number in text for number in (numbers if text in whole else numbers[:1]))


@pytest.mark.parametrize(
    ("experiment", "variant"), [("probe_points", "8-points"), ("ablate_detector", "dense_decoder")]
)
def test_differences_of_the_guide_are_those_of_the_verdicts(experiment: str, variant: str) -> None:
    assert all(number in GUIDE for number in of_verdict(experiment, variant))


def training_of_encoders(row: dict) -> bool:
    return row["pass"] == "forward+backward" and row.get("role", "encoder") == "encoder"


def test_overview_draws_the_means_of_the_table() -> None:
    axes = Figure().subplots()
    docs_figures.draw_convergence(axes)
    last = {line.get_label(): f"{line.get_ydata()[-1]:.3f}" for line in axes.lines}
    saved = (DOCS / "results/ablate_attention/comparison.md").read_text(encoding="utf-8")
    assert last == dict(re.findall(r"^\| (\w+) \| ([\d.]+) ±", saved, re.MULTILINE))


def test_guide_shows_the_measured_times() -> None:
    measured: dict[str, dict[int, float]] = defaultdict(dict)
    scaling = json.loads((DOCS / "results/operators/scaling.json").read_text())
    for row in filter(training_of_encoders, scaling["rows"]):
        if row["axis"] == "tokens":
            measured[row["attention"]][row["x"]] = 1e3 * statistics.median(row["seconds"])
    rows = table(GUIDE, "By image size")
    names = [name.strip("`") for name in rows.pop("image")[1:]]
    assert set(names) == set(measured)
    exponents = rows.pop("grows with tokens to the power of")[1:]
    for fit in scaling["fits"]:
        if fit["axis"] == "tokens" and training_of_encoders(fit):
            law = fit["time"]
            assert exponents[names.index(fit["attention"])] == (
                "not measured" if law is None else f"{law['exponent']:.2f}"
            )
    rows = {size: cells for size, cells in rows.items() if " x " in size}
    assert len(rows) == 5
    for tokens, *cells in rows.values():
        for name, cell in zip(names, cells, strict=True):
            milliseconds = measured[name].get(int(tokens.replace(",", "")))
            assert cell == ("not measured" if milliseconds is None else f"{milliseconds:,.0f}"), (name, tokens)


@pytest.mark.parametrize(
    ("heading", "experiments"),
    [
        ("By object size", ["ablate_attention"]),
        ("By object size, in the encoder", ["ablate_encoder", "ablate_encoder_dcn_first"]),
    ],
)
def test_guide_shows_the_scores_by_object_size(heading: str, experiments: list[str]) -> None:
    scores: dict[str, dict[int, list[float]]] = defaultdict(dict)
    for name in experiments:
        for run in json.loads((DOCS / f"results/{name}/results.json").read_text())["runs"]:
            final = [row for row in run["metrics"] if "val/AP" in row][-1]
            scores[run["variant_name"]][run["seed"]] = [final[f"val/AP_{size}"] for size in "SML"]
    rows = table(GUIDE, heading)
    for name, by_seed in scores.items():
        runs = [by_seed[seed] for seed in range(1000, 1006)]
        (cells,) = [cells for label, cells in rows.items() if re.fullmatch(rf"`?{name}`?(,.*)?", label)]
        assert cells == [f"{statistics.mean(column):.3f}" for column in zip(*runs, strict=True)]


def profiles() -> dict[tuple[str, str], str]:
    """Mean accuracy of each attention and probe."""
    saved = (DOCS / "results/probes/comparison.md").read_text(encoding="utf-8")
    pattern = r"^\| ([\w-]+) \| (\w+) \|.*?\| ([\d.]+) ± [\d.]+ \|"
    return {(name, probe): score for name, probe, score in re.findall(pattern, saved, re.MULTILINE)}


def test_guide_shows_the_profiles() -> None:
    measured = profiles()
    rows = table(GUIDE, "By what the task needs")
    columns = [name.strip("`") for name in rows.pop("the task needs")[1:-1]]
    shown = [cells for label, cells in rows.items() if label != "---"]
    assert len(shown) == 8
    for probe, *cells in shown:
        assert cells[:-1] == [measured[name, probe] for name in columns], probe


@pytest.mark.parametrize("page", ["conv", "dat", "dcn", "deformable", "dense", "neighborhood", "window"])
def test_pages_of_attentions_show_their_profiles(page: str) -> None:
    name = page.replace("deformable", "ms_deform")
    text = (DOCS / "attentions" / f"{page}.md").read_text(encoding="utf-8")
    scores = [score for (attention, _), score in profiles().items() if attention == name]
    assert len(scores) == 8
    assert f"| {' | '.join(scores)} |" in text


def test_results_index_links_every_folder() -> None:
    index = (DOCS / "results" / "README.md").read_text(encoding="utf-8")
    linked = {target.split("/")[0].removesuffix(".md") for target in re.findall(r"\]\(([^)#.][^)#]*)", index)}
    folders = {path.name for path in (DOCS / "results").iterdir() if path.is_dir()}
    assert folders <= linked
