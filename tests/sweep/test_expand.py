from pathlib import Path

import pytest

from attnzoo.config.load import Experiment
from attnzoo.errors import UserError
from attnzoo.sweep.expand import RunSpec, expand

ENCODER, DECODER = "model.encoder.attention", "model.decoder.attention"


def runs_of(folder: Path, sweep: str, *overrides: str) -> list[RunSpec]:
    path = folder / "x.yaml"
    path.write_text(f"name: x\ntrain: {{steps: 5}}\nseed: 3\n{sweep}\n")
    return expand(Experiment(path, overrides))


def names(folder: Path, sweep: str, *overrides: str) -> list[str]:
    return [run.name for run in runs_of(folder, sweep, *overrides)]


def test_without_a_sweep_there_is_one_run(tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path, "")
    assert (run.name, run.overrides, run.seed) == ("seed=3", {}, 3)


def test_grid_gives_all_combinations_with_all_seeds(tmp_path: Path) -> None:
    found = names(tmp_path, "sweep: {grid: {model.dim: [8, 16], model.head.refine: [true, false]}, seeds: [0, 1]}")
    assert len(found) == 8
    assert found[0] == "dim=8-refine=true-seed=0"
    assert found[-1] == "dim=16-refine=false-seed=1"


def test_distinct_numbers_have_distinct_names(tmp_path: Path) -> None:
    found = names(tmp_path, "sweep: {grid: {train.optimizer.lr: [0.1234567, 0.1234568, 2.0, 1e-5]}}")
    assert found == [f"lr={lr}-seed=3" for lr in ("0.1234567", "0.1234568", "2", "1e-05")]


def test_zipped_keys_with_equal_values_share_a_label(tmp_path: Path) -> None:
    sweep = f"sweep: {{zip: {{{ENCODER}.points: [1, 2], {DECODER}.points: [1, 2]}}, seeds: [0]}}"
    runs = runs_of(tmp_path, sweep)
    assert [run.name for run in runs] == ["points=1-seed=0", "points=2-seed=0"]
    assert runs[1].labels == {"points": 2}
    assert runs[1].overrides == {f"{ENCODER}.points": 2, f"{DECODER}.points": 2}
    assert runs[1].config.model.decoder.attention == {"name": "ms_deform", "points": 2}


def test_keys_with_the_same_ending_keep_what_distinguishes_them(tmp_path: Path) -> None:
    found = names(tmp_path, f"sweep: {{grid: {{{ENCODER}.points: [1, 2], {DECODER}.points: [1, 2]}}}}")
    assert found[1] == "encoder.attention.points=1-decoder.attention.points=2-seed=3"


def test_whole_blocks_are_labelled_by_their_options(tmp_path: Path) -> None:
    blocks = "[{name: dense}, {name: deform, level: 0}]"
    runs = runs_of(tmp_path, f"sweep: {{zip: {{{ENCODER}: {blocks}, {DECODER}: {blocks}}}}}")
    assert [run.name for run in runs] == ["attention=dense-seed=3", "attention=deform-level=0-seed=3"]
    assert runs[0].config.model.encoder.attention == {"name": "dense"}


def test_exclude_removes_combinations(tmp_path: Path) -> None:
    sweep = "sweep: {grid: {model.dim: [8, 16], model.ffn: [8, 16]}, seeds: [0, 1], exclude: [%s]}"
    assert len(names(tmp_path, sweep % "{model.dim: 8, model.ffn: 16}")) == 6
    assert len(names(tmp_path, sweep % "{model.dim: 8, seed: 1}, {model.ffn: 16, seed: 1}")) == 5


def test_seeds_share_a_digest_and_variants_do_not(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, "sweep: {grid: {model.dim: [8, 16]}, seeds: [0, 1]}")
    assert len({run.digest for run in runs}) == 2
    assert runs[0].digest == runs[1].digest
    assert all(run.config.sweep.seeds == [] and not run.config.sweep.grid for run in runs)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("grid: {model.dimm: [1]}", "x.yaml: sweep: unknown key 'model.dimm'; did you mean 'model.dim'"),
        ("grid: {model.dim: [8, x]}", "run dim=x-seed=3: model.dim = 'x': expected int"),
        ("grid: {model.dim: 8}", "sweep.grid.model.dim = 8: expected list"),
        ("grid: {model.dim: []}", "sweep.grid.model.dim = []: expected at least one value"),
        ("grid: {seed: [1]}", "'seed' cannot be swept; list a sweep's seeds in sweep.seeds"),
        ("grid: {output: [a, b]}", "'output' cannot be swept"),
        ("zip: {model.dim: [8, 16], model.ffn: [8]}", "model.dim has 2, model.ffn has 1 values"),
        ("{grid: {model.dim: [8]}, zip: {model.dim: [8]}}", "'model.dim' is in both grid and zip"),
        ("seeds: [1, 1]", "sweep.seeds = [1, 1]: duplicate seed"),
        ("seeds: [-1]", "sweep.seeds = -1: expected a number at least 0"),
        ("grid: {model.dim: [8, 8]}", "have the same config"),
        ("{grid: {model.dim: [8]}, exclude: [{model.dimm: 8}]}", "'model.dimm' is not swept; did you mean 'model.dim'"),
        ("{grid: {model.dim: [8]}, exclude: [{model.dim: 9}]}", "model.dim = 9 is not among its values [8]"),
        ("{grid: {model.dim: [8]}, exclude: [{model.dim: 8}]}", "sweep.exclude removes all runs"),
        ("grid: {}", "sweep.grid = {}: expected at least one key"),
        ("zip: {}", "sweep.zip = {}: expected at least one key"),
        ("gird: {model.dim: [8]}", "unknown key 'sweep.gird'; did you mean 'sweep.grid'"),
    ],
)
def test_invalid_sweeps_are_errors(tmp_path: Path, sweep: str, message: str) -> None:
    block = sweep if sweep.startswith("{") else f"{{{sweep}}}"
    with pytest.raises(UserError) as caught:
        runs_of(tmp_path, f"sweep: {block}")
    assert message in str(caught.value)
    assert "x.yaml" in str(caught.value)
    assert caught.value.keys


@pytest.mark.parametrize(
    "sweep",
    [
        "{grid: {model.dimm: [1]}}",
        "{grid: {model.dim: [8, x]}}",
        "{grid: {model.dim: []}}",
        "{grid: {seed: [1]}}",
        "{zip: {model.dim: [8, 16], model.ffn: [8]}}",
        "{grid: {model.dim: [8]}, zip: {model.dim: [8]}}",
        "{seeds: [1, 1]}",
        "{grid: {model.dim: [8, 8]}}",
        "{grid: {model.dim: [8]}, exclude: [{model.dimm: 8}]}",
        "{grid: {model.dim: [8]}, exclude: [{model.dim: 8}]}",
        "{variants: {a: {model.dim: x}, b: {}}}",
        "{variants: {a/b: {}}}",
        "{variants: {a: {model.dim: 8, model: {dim: 16}}}}",
        "{variants: {a: {model.dim: 8}}, grid: {model.dim: [8, 16]}}",
        "{variants: {a: {}}, one_at_a_time: {model.dim: [8]}}",
        "{one_at_a_time: {model.dim: [8, 8]}}",
        "{one_at_a_time: {slurm.time: [10]}}",
    ],
)
def test_faults_of_a_sweep_name_where_it_stands(tmp_path: Path, sweep: str) -> None:
    """In a base, on the command line; not the file that is run."""
    (tmp_path / "x.yaml").write_text("name: x\ntrain: {steps: 5}\n")
    with pytest.raises(UserError, match=r"^command line: ") as caught:
        expand(Experiment(tmp_path / "x.yaml", [f"sweep={sweep}"]))
    assert "x.yaml" not in str(caught.value)
    (tmp_path / "low.yaml").write_text(f"train: {{steps: 5}}\nsweep: {sweep}\n")
    (tmp_path / "top.yaml").write_text("base: low.yaml\nname: x\n")
    with pytest.raises(UserError) as caught:
        expand(Experiment(tmp_path / "top.yaml", ["jobs=2"]))
    assert str(caught.value).startswith(f"{tmp_path}/low.yaml: ")


def test_a_file_may_clear_the_sweep_of_its_base(tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text("train: {steps: 5}\nsweep: {grid: {model.dim: [8, 16]}}\n")
    (tmp_path / "top.yaml").write_text("base: low.yaml\nname: x\nsweep: {grid: {}}\n")
    assert [run.name for run in expand(Experiment(tmp_path / "top.yaml"))] == ["seed=0"]
    assert len(names(tmp_path, "", "sweep.zip={}")) == 1
