"""`attnzoo probe`: profiles from training and from finished runs, pictures, errors."""

import re
from pathlib import Path

import pytest

from attnzoo import __main__ as attnzoo_main
from attnzoo import attention
from attnzoo.config.load import Experiment
from attnzoo.data.build import PROBES
from attnzoo.errors import ExitCode
from attnzoo.probe.plot import plot
from attnzoo.probe.profile import ProbeScore, read_profile
from attnzoo.sweep.expand import expand

PLUGIN = '''
from attnzoo.attention import register
from attnzoo.attention.dense import DenseAttention


@register("probe_plugin")
class Plugin(DenseAttention):
    """Dense attention under another name."""
'''


def test_the_experiment_has_every_attention_and_every_probe() -> None:
    runs = expand(Experiment("experiments/probes.yaml"))
    assert {run.config.model.attention["name"] for run in runs} == set(attention.names())
    assert {run.config.data.dataset["name"] for run in runs} == set(PROBES.names())
    assert len(runs) == 8 * 5 * len(attention.names())


@pytest.mark.parametrize("name", PROBES.names())
def test_the_curves_reach_the_default_difficulty(name: str) -> None:
    runs = expand(Experiment("experiments/probe_curves.yaml"))
    difficulty = PROBES.build(name).difficulty
    default = PROBES.options(name)[difficulty].default
    values = {run.config.data.dataset[difficulty] for run in runs if run.config.data.dataset["name"] == name}
    assert default in values
    assert len(values) > 2


@pytest.mark.slow
@pytest.mark.long
def test_profile_of_a_plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN)
    words = ["probe", "mine.py", "--probes", "find,scale", "--steps", "2", "--plot", "map.svg"]
    assert attnzoo_main.main(words) == ExitCode.OK
    out = capsys.readouterr().out
    assert "Profile of probe_plugin" in out
    assert "find by content" in out
    assert "unknown scale" in out
    assert (tmp_path / "map.svg").read_text().startswith("<?xml")
    profile = read_profile([tmp_path / "runs/probe_probe_plugin"])
    assert [score.label for score in profile] == ["scale", "find"]
    assert all(score.steps is None and score.seconds > 0 and score.mflops > 0 for score in profile)
    assert attnzoo_main.main(["compare", "runs/probe_probe_plugin", "--save", "saved"]) == ExitCode.OK
    assert attnzoo_main.main(["probe", "saved"]) == ExitCode.OK, "the profile can be read from saved results"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dens"], "unknown attention 'dens'; did you mean 'dense'?"),
        (["dense", "points=8"], "attention 'dense' has no option 'points'"),
        (["dense", "point"], "'point': expected option=value"),
        (["dense", "--probes", "read,fnid"], "--probes: unknown probe 'fnid'; did you mean 'find'?"),
        (["dense", "--seeds", "a"], "--seeds a: expected whole numbers, such as 0,1,2"),
        (["dense", "--plot", "map.jpg"], "--plot map.jpg: expected a name that ends in .png, .pdf or .svg"),
        (["dense", "--plot", "."], "--plot .: is a folder; name a file"),
        (["dense", "--heads", "3"], "model.heads = 3: must divide model.dim = 64"),
        (["mine.py"], "mine.py"),
        (["."], "no runs in it"),
    ],
)
def test_errors(words, message, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert attnzoo_main.main(["probe", *words]) == ExitCode.USER_ERROR
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def score(attention: str, probe: str, accuracy: float, steps: float | None, value: float = 8) -> ProbeScore:
    return ProbeScore(attention, probe, "keys", value, value == 8, "", (accuracy,), 0.25, 1.0, steps, 2.0, None)


def test_normalized_score() -> None:
    assert score("dense", "find", 0.25, None).normalized == 0
    assert score("dense", "find", 1.0, None).normalized == 1


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_heat_map_with_gaps(suffix: str, tmp_path: Path) -> None:
    """An attention without one of the probes, and one that never gets to 90 %; the same runs give the same bytes."""
    profile = [score("dense", "find", 0.9, 120.0), score("dense", "read", 0.4, None), score("dat", "find", 0.3, None)]
    for name in ("one", "two"):
        plot(profile, tmp_path / f"{name}.{suffix}")
    if suffix != "svg":
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()
    assert (tmp_path / f"one.{suffix}").stat().st_size > 1000


def test_curves_where_a_probe_has_several_difficulties(tmp_path: Path) -> None:
    """A panel for each probe, a line for each attention that has scores, by rising difficulty."""
    profile = [score("dense", "find", 0.9 - 0.1 * keys, None, keys) for keys in (8, 2, 4)]
    profile += [score("dat", "find", 0.3, None, 2), score("dense", "read", 0.4, None)]
    profile = profile[-1:] + profile[:-1]  # the first panel is without dat
    plot(profile, tmp_path / "curves.svg")
    text = (tmp_path / "curves.svg").read_text()
    assert "<!-- o -->" not in text
    for word in ("find", "read", "keys", "accuracy", "chance", "dense", "dat"):
        assert f"<!-- {word} -->" in text
    assert [score.label for score in profile[1:3]] == ["find", "find (keys 2)"]


def test_the_documented_scores_are_those_of_the_raw_results() -> None:
    docs = Path(__file__).parents[2] / "docs"
    table = (docs / "probes.md").read_text(encoding="utf-8").partition("## Heads, points")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if re.match(r"\| [\w*-]+ \| [\d.]+ \| [\d.]+ \|", line)]
    rows = [re.findall(r"[^|]+", line) for line in lines]
    documented = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    expected: dict[str, list[str]] = {}
    chances: dict[str, str] = {}
    for cell in read_profile([docs / "results/profile_probes"]):
        expected.setdefault(cell.attention, []).append(f"{cell.score:.3f}")
        chances[cell.label] = f"{cell.chance:.3f}"
    assert documented == expected | {"*chance*": [*chances.values()]}


def test_the_documented_curves_are_those_of_the_raw_results() -> None:
    docs = Path(__file__).parents[2] / "docs"
    text = (
        (docs / "probes.md")
        .read_text(encoding="utf-8")
        .partition("## Accuracy against difficulty")[2]
        .partition("\n## ")[0]
    )
    curves: dict[tuple[str, str], list[str]] = {}
    for cell in sorted(read_profile([docs / "results/probe_curves"]), key=lambda cell: cell.value):
        curves.setdefault((cell.probe, cell.attention), []).append(f"{cell.score:.2f}")
    for curve in (
        ("read", "ms_deform"),
        ("read", "ms_deform-1-head"),
        ("count", "ms_deform-1-head"),
        ("reach", "window"),
        ("reach", "ms_deform"),
    ):
        assert ", ".join(curves[curve]) in text
    assert set(curves["count", "ms_deform"]) == {"1.00"}
    assert set(curves["find", "dense"]) == set(curves["find", "dat"]) == {"1.00"}
    assert f"`ms_deform` has {curves['find', 'ms_deform'][0]}, with eight {curves['find', 'ms_deform'][-1]}" in text
    assert f"{curves['read', 'dense'][0]} and {curves['read', 'dat'][0]} in `read`" in text
