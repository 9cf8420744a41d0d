"""Rounds of seeds: which runs are needed, given the scores of those that are finished."""

import csv
import io
import json
from pathlib import Path

import pytest

from attnzoo.__main__ import main
from attnzoo.config.load import Experiment, save
from attnzoo.errors import UserError
from attnzoo.report.compare import compare
from attnzoo.report.runs import SweepPlan, find_plan
from attnzoo.report.table import paired_notes, to_csv, to_json
from attnzoo.rundir.ledger import Ledger
from attnzoo.sweep.expand import Sweep, expand_sweep
from attnzoo.sweep.folder import SweepFolder
from attnzoo.sweep.rounds import SeedRounds
from attnzoo.sweep.seeds import SeedPlan

VARIANTS = "variants: {dense: {model.decoder.attention: {name: dense}}, deform: {}, other: {model.dim: 128}}"
ROUNDS = "{until: decided, at_least: 4, at_most: 8, per_round: 2, first: 10}"


def experiment(folder: Path, sweep: str, *lines: str) -> Experiment:
    path = folder / "x.yaml"
    first = f"name: x\noutput: {folder / 'runs'}\ntrain: {{steps: 5}}\nsweep: {{{VARIANTS}, {sweep}}}"
    path.write_text("\n".join([first, *lines, ""]))
    return Experiment(path)


def expanded(folder: Path, sweep: str) -> Sweep:
    return expand_sweep(experiment(folder, sweep))


def rounds(folder: Path, sweep: str, *lines: str) -> SeedRounds:
    described = experiment(folder, sweep, *lines)
    return SeedRounds(expand_sweep(described), described.config())


def finish(rounds: SeedRounds, scores: dict[str, list[float]], first: int = 10) -> None:
    """Write the folders of finished runs, as a sweep would: seed first + i of a variant has its score number i."""
    runs = [run for run in rounds.sweep.runs if run.seed - first < len(scores.get(run.variant_name, []))]
    SweepFolder(runs[0].folder.path.parent).create(runs, "x.yaml", comparison=rounds.comparison)
    for run in runs:
        score = scores[run.variant_name][run.seed - first]
        rows = [{"step": 2, "val/AP": score / 2}, {"step": 5, "val/AP": score}]
        save(run.config, run.folder.config)
        run.folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run.folder.write_status(state="done", step=5, steps=5)


def needed(rounds: SeedRounds) -> dict[str, list[int]]:
    names = dict.fromkeys(run.variant_name for run in rounds.sweep.runs)
    return {name: [run.seed for run in rounds.needed_runs() if run.variant_name == name] for name in names}


BASE = [0.10, 0.12, 0.11, 0.13, 0.12, 0.10, 0.11, 0.12]
BETTER = [score + 0.1 + 0.001 * (i % 3) for i, score in enumerate(BASE)]
UNCLEAR = [score + (-1) ** i * 0.01 for i, score in enumerate(BASE)]


def test_first_round_is_wanted_until_it_is_finished(tmp_path):
    first = rounds(tmp_path, f"seeds: {ROUNDS}")
    assert all(seeds == [10, 11, 12, 13] for seeds in needed(first).values())
    finish(first, {"dense": BASE[:4], "deform": BETTER[:4], "other": UNCLEAR[:3]})
    assert all(seeds == [10, 11, 12, 13] for seeds in needed(first).values())


def test_only_undecided_variants_and_the_baseline_get_more_seeds(tmp_path):
    first = rounds(tmp_path, f"seeds: {ROUNDS}")
    finish(first, {"dense": BASE[:4], "deform": BETTER[:4], "other": UNCLEAR[:4]})
    six = [10, 11, 12, 13, 14, 15]
    assert needed(first) == {"dense": six, "deform": six[:4], "other": six}
    finish(first, {"dense": BASE, "deform": BETTER[:4], "other": UNCLEAR})
    eight = [*six, 16, 17]
    assert needed(first) == {"dense": eight, "deform": six[:4], "other": eight}


def test_rounds_end_when_all_are_decided(tmp_path):
    first = rounds(tmp_path, f"seeds: {ROUNDS}, margin: 0.05")
    same = [score + 0.001 * (i % 2) for i, score in enumerate(BASE)]
    finish(first, {"dense": BASE[:4], "deform": BETTER[:4], "other": same[:4]})
    assert all(seeds == [10, 11, 12, 13] for seeds in needed(first).values())
    comparison = compare([tmp_path / "runs"])
    assert [row.final.verdict for row in comparison.paired.rows] == ["better", "equivalent"]


def test_copy_of_the_baseline_runs_as_often_and_is_not_judged(tmp_path):
    first = rounds(tmp_path, f"seeds: {ROUNDS}, aa: true, baseline: deform")
    assert first.sweep.aa == "deform-aa"
    copies = [run for run in first.sweep.runs if run.variant_name == "deform-aa"]
    assert {run.config.train.stream for run in copies} == {1}
    assert {run.config.train.stream for run in first.sweep.runs if run.variant_name == "deform"} == {0}
    finish(first, {"dense": BETTER[:4], "deform": BASE[:4], "other": UNCLEAR[:4], "deform-aa": UNCLEAR[:4]})
    assert needed(first)["deform-aa"] == needed(first)["deform"] == [10, 11, 12, 13, 14, 15]
    comparison = compare([tmp_path / "runs"])
    paired = comparison.paired
    assert (paired.baseline, paired.is_given, paired.is_sequential) == ("deform", True, True)
    assert [(row.name, row.is_aa) for row in paired.rows] == [("dense", False), ("other", False), ("deform-aa", True)]
    assert any("p (Holm) is empty: with rounds of seeds" in note for note in paired_notes(paired))
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert {row["variant"]: row["verdict"] for row in rows} == {
        "dense": "better", "deform": "", "other": "undecided", "deform-aa": "A/A copy",
    }  # fmt: skip
    rows = json.loads(to_json(comparison))["paired"]["rows"]
    assert [row["name"] for row in rows if "verdict" in row["final"]] == ["dense", "other"]
    assert not any(key in row["area"] for row in rows for key in ("verdict", "more_pairs", "holm_p"))


def test_copy_of_a_baseline_without_a_name(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("name: x\ntrain: {steps: 5}\nsweep: {grid: {model.dim: [32, 64]}, baseline: dim=64, aa: true}\n")
    names = [run.name for run in expand_sweep(Experiment(path)).runs]
    assert names == ["dim=32-seed=0", "dim=64-seed=0", "dim=64-aa-seed=0"]


@pytest.mark.parametrize(
    ("lines", "where", "start"),
    [
        ([], "To measure them: ", ""),
        (
            ["launcher: slurm", "slurm: {partition: gpu, cpus_per_task: 4, gpus_per_node: 2}"],
            "To measure them, on a node of its own: ",
            "srun --exclusive --nodes=1 --ntasks=1 --partition=gpu --cpus-per-task=4 --gpus=1 ",
        ),
    ],
)
def test_comparison_says_how_to_measure_missing_costs(tmp_path, lines, where, start):
    """The jobs of a SLURM sweep do not measure them, nor does a local sweep that was interrupted."""
    sweep = tmp_path / "runs" / "x"
    first = rounds(tmp_path, "seeds: [10, 11]", *lines)
    SweepFolder(sweep).create(first.sweep.runs, "x.yaml", comparison=first.comparison)
    finish(first, {"dense": BASE[:2], "deform": BASE[:2], "other": BASE[:1]})
    line = f"Costs were not measured. {where}{start}attnzoo cost {sweep}"
    assert line not in compare([sweep]).notes
    finish(first, {"dense": BASE[:2], "deform": BASE[:2], "other": BASE[:2]})
    assert line in compare([sweep]).notes
    without = rounds(tmp_path, "seeds: [10, 11], costs: false", *lines)
    finish(without, {"dense": BASE[:2], "deform": BASE[:2], "other": BASE[:2]})
    assert not any("Costs were not measured" in note for note in compare([sweep]).notes)


def test_run_without_a_finite_score_keeps_its_variant_undecided(tmp_path):
    first = rounds(tmp_path, f"seeds: {ROUNDS}")
    finish(first, {"dense": BASE[:4], "deform": BETTER[:4], "other": BETTER[:4]})
    (broken,) = [run for run in first.sweep.runs if run.name == "deform-seed=12"]
    broken.folder.metrics.write_text('{"step": 5, "val/AP50": 0.1}\n')
    broken.folder.write_status(state="done")
    assert needed(first) == {
        "dense": [10, 11, 12, 13, 14, 15],
        "deform": [10, 11, 12, 13, 14, 15],
        "other": [10, 11, 12, 13],
    }


def test_plan_is_read_from_the_folder_of_the_sweep(tmp_path):
    first = rounds(tmp_path, f"seeds: {ROUNDS}, margin: 0.02, baseline: other")
    finish(first, {"dense": BASE[:4], "deform": BETTER[:4], "other": UNCLEAR[:4]})
    sweep = first.sweep.runs[0].folder.path.parent
    digests = tuple(dict.fromkeys(run.digest for run in first.sweep.runs))
    expected = SweepPlan("other", None, 0.02, (4, 6, 8), digests=digests, costs=True)
    for folder in (sweep, tmp_path / "runs", first.sweep.runs[0].folder.path):
        assert find_plan([folder]) == expected
    ledger = Ledger(sweep).read()
    assert ledger["runs"]["dense-seed=10"]["variant_name"] == "dense"


def test_baseline_and_margin_of_the_command_line_win(tmp_path, capsys):
    first = rounds(tmp_path, f"seeds: {ROUNDS}")
    finish(first, {"dense": BASE[:4], "deform": BETTER[:4], "other": UNCLEAR[:4]})
    folder = str(tmp_path / "runs")
    assert main(["compare", folder, "--json", "--baseline", "other", "--margin", "0.5"]) == 0
    paired = json.loads(capsys.readouterr().out)["paired"]
    assert (paired["baseline"], paired["margin"]) == ("other", 0.5)
    assert not list((tmp_path / "runs").rglob("comparison.*"))
    assert main(["compare", folder, "--baseline", "othr"]) == 2
    assert "--baseline: unknown variant 'othr'; did you mean 'other'?" in capsys.readouterr().err


def test_dry_run_shows_the_pairs_that_the_margin_needs(tmp_path):
    first = rounds(tmp_path, f"seeds: {ROUNDS}, margin: 0.02")
    plan, margin = first.describe()
    assert plan == "seeds: 4 to 8 of each variant, 2 more at a time while undecided against dense"
    assert margin.startswith("margin AP ± 0.02: ")
    assert margin.count("pairs at a deviation") == 3
    finish(first, {"dense": BASE[:4], "deform": BETTER[:4], "other": UNCLEAR[:4]})
    assert first.describe()[1].endswith("(largest measured)")


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("seeds: {until: decided}", r"sweep\.seeds: at_most is missing"),
        ("seeds: {until: done, at_most: 5}", r"sweep\.seeds\.until = 'done': expected 'decided'"),
        ("seeds: {until: decided, at_most: 5, at_lest: 2}", r"unknown option 'at_lest'; did you mean 'at_least'"),
        ("seeds: {until: decided, at_most: 5, at_least: 6}", r"sweep\.seeds\.at_least = 6: expected 2 to at_most = 5"),
        ("seeds: {until: decided, at_most: 3}", r"sweep\.seeds\.at_most = 3: expected at least 4, the fewest pairs"),
        ("seeds: {until: decided, at_most: 5, per_round: 0}", r"sweep\.seeds\.per_round = 0: expected at least 1"),
        ("seeds: {until: decided, at_most: many}", r"sweep\.seeds\.at_most = 'many': expected int"),
        ("baseline: dens", r"sweep\.baseline: unknown variant 'dens'; did you mean 'dense'\?"),
        ("margin: 0", r"sweep\.margin = 0"),
        ("aa: true, grid: {train.stream: [0, 1]}", r"sweep\.aa: train\.stream is swept already"),
    ],
)
def test_invalid_plans_are_refused(tmp_path, sweep, message):
    with pytest.raises(UserError, match=message):
        expanded(tmp_path, sweep)


def test_one_variant_has_nothing_to_decide(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("name: x\ntrain: {steps: 5}\nsweep: {seeds: {until: decided, at_most: 5}}\n")
    with pytest.raises(UserError, match="one variant has nothing to decide"):
        expand_sweep(Experiment(path))


def test_default_of_at_least_is_the_fewest_pairs_that_can_decide(tmp_path):
    plan = expanded(tmp_path, "seeds: {until: decided, at_most: 20}").plan
    assert plan == SeedPlan(first=0, at_least=4, at_most=20, per_round=1)
