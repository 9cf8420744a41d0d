"""Named variants, one change at a time, and overrides that the sweep would overwrite."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from attnzoo.config.load import Experiment, save
from attnzoo.errors import UserError
from attnzoo.report import hparams
from attnzoo.report.compare import compare
from attnzoo.report.table import markdown
from attnzoo.sweep.check_runs import check_runs
from attnzoo.sweep.expand import RunSpec, expand
from attnzoo.sweep.folder import SweepFolder

ENCODER, DECODER = "model.encoder.attention", "model.decoder.attention"
NESTED = "{model: {encoder: {attention: {level: 0, name: deform}}}}"
TWO = f"variants: {{dense: {{{ENCODER}: {{name: dense}}}}, deform: {NESTED}}}"
BACKBONE = "model.backbone"


def runs_of(folder: Path, sweep: str, *overrides: str) -> list[RunSpec]:
    path = folder / "x.yaml"
    path.write_text(f"name: x\noutput: {folder / 'runs'}\ntrain: {{steps: 5}}\nseed: 3\nsweep: {{{sweep}}}\n")
    return expand(Experiment(path, overrides))


def names(folder: Path, sweep: str, *overrides: str) -> list[str]:
    return [run.name for run in runs_of(folder, sweep, *overrides)]


def test_variant_sets_keys_nested_or_dotted(tmp_path: Path) -> None:
    dense, deform = runs_of(tmp_path, TWO)
    assert [dense.name, deform.name] == ["dense-seed=3", "deform-seed=3"]
    assert (dense.variant, deform.variant) == ("dense", "deform")
    assert dense.overrides == {ENCODER: {"name": "dense"}}
    assert deform.overrides == {ENCODER: {"level": 0, "name": "deform"}}
    assert deform.config.model.encoder.attention == {"name": "deform", "level": 0}
    assert deform.labels == {}


def test_documented_example(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "config-and-sweeps.md").read_text()
    lines = page.partition("    sweep:\n")[2].partition("\n\n")[0]
    (tmp_path / "x.yaml").write_text(f"name: x\ntrain: {{steps: 5}}\nsweep:\n{lines}\n")
    runs = expand(Experiment(tmp_path / "x.yaml"))
    assert len(runs) == (2 * 2 * 2 - 2) * 3
    assert runs[0].name == "dense-dim=64-ffn=128-lr=0.001-seed=0"


def test_variants_are_combined_with_zip_grid_and_seeds(tmp_path: Path) -> None:
    sweep = f"{TWO}, zip: {{model.dim: [8, 16], model.ffn: [16, 32]}}, grid: {{model.queries: [5, 6]}}, seeds: [0, 1]"
    found = names(tmp_path, sweep)
    assert len(found) == 16
    assert found[0] == "dense-dim=8-ffn=16-queries=5-seed=0"
    assert found[-1] == "deform-dim=16-ffn=32-queries=6-seed=1"


def test_grid_may_set_an_option_of_a_variant(tmp_path: Path) -> None:
    variants = f"variants: {{one: {{{ENCODER}: {{name: deform, level: 0}}}}, all: {{}}}}"
    runs = runs_of(tmp_path, f"{variants}, grid: {{{ENCODER}.points: [2, 4]}}")
    assert [run.name for run in runs] == [f"{v}-points={p}-seed=3" for v in ("one", "all") for p in (2, 4)]
    assert runs[0].config.model.encoder.attention == {"name": "deform", "level": 0, "points": 2}
    assert runs[3].config.model.encoder.attention == {"name": "ms_deform", "points": 4}


def test_exclude_matches_variants(tmp_path: Path) -> None:
    found = names(tmp_path, f"{TWO}, grid: {{model.dim: [8, 16]}}, exclude: [{{variant: dense, model.dim: 16}}]")
    assert found == ["dense-dim=8-seed=3", "deform-dim=8-seed=3", "deform-dim=16-seed=3"]
    assert names(tmp_path, f"{TWO}, seeds: [0, 1], exclude: [{{variant: dense}}]") == ["deform-seed=0", "deform-seed=1"]


def test_variants_are_replaced_by_a_later_file(tmp_path: Path) -> None:
    assert names(tmp_path, TWO, "sweep.variants={wide: {model.dim: 512}}") == ["wide-seed=3"]
    assert names(tmp_path, TWO, "sweep.variants={}") == ["seed=3"]


def test_one_at_a_time_runs_the_base_and_each_value(tmp_path: Path) -> None:
    block = f"one_at_a_time: {{model.dim: [64, 128], {ENCODER}: [{{name: dense}}, {{name: deform, level: 0}}]}}"
    runs = runs_of(tmp_path, block)
    assert [run.variant for run in runs] == [
        "base", "dim=64", "dim=128", "attention=dense", "attention=deform-level=0",
    ]  # fmt: skip
    assert [run.config.model.dim for run in runs] == [256, 64, 128, 256, 256]
    assert runs[0].overrides == {}
    assert names(tmp_path, f"{block}, seeds: [0, 1]")[:3] == ["base-seed=0", "base-seed=1", "dim=64-seed=0"]
    found = names(tmp_path, "one_at_a_time: {model.dim: [64]}, grid: {model.ffn: [8, 16]}")
    assert found == ["base-ffn=8-seed=3", "base-ffn=16-seed=3", "dim=64-ffn=8-seed=3", "dim=64-ffn=16-seed=3"]


def test_value_of_the_base_is_not_run_twice(tmp_path: Path) -> None:
    assert names(tmp_path, "one_at_a_time: {model.dim: [256, 64]}") == ["base-seed=3", "dim=64-seed=3"]
    runs = runs_of(tmp_path, f"one_at_a_time: {{{ENCODER}.points: [2, 4]}}", "data.dataset={name: digit_scenes}")
    assert [run.name for run in runs] == ["base-seed=3", "points=2-seed=3", "points=4-seed=3"]
    valid = check_runs(Experiment(tmp_path / "x.yaml", ["data.dataset={name: digit_scenes}"]), runs)
    assert [run.name for run in valid] == ["base-seed=3", "points=2-seed=3"]  # 4 is the default of the attention


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("variants: {a: {model.dimm: 8}}", "x.yaml: sweep: unknown key 'model.dimm'; did you mean 'model.dim'"),
        ("variants: {a: {model: {dimm: 8}}}", "x.yaml: sweep: unknown key 'model.dimm'; did you mean 'model.dim'"),
        ("variants: {a: {model.dim: x}}", "x.yaml: sweep: model.dim = 'x': expected int"),
        ("variants: {a: {}, b: {model.dim: x}}", "x.yaml: sweep, run b-seed=3: model.dim = 'x': expected int"),
        ("variants: {a: {}, a: {}}", "'a'"),
        ("variants: {a/b: {}}", "sweep.variants: 'a/b': expected the name of a folder"),
        ("variants: {'': {}}", "sweep.variants: '': expected the name of a folder"),
        ("variants: {a b: {}}", "sweep.variants: 'a b': expected the name of a folder"),
        ("variants: {.a: {}}", "sweep.variants: '.a': expected the name of a folder"),
        ("variants: {a: }", "sweep.variants.a = null: expected a mapping"),
        ("variants: {a: 3}", "sweep.variants.a = 3: expected a mapping"),
        ("variants: {a: {}, b: {}}", "the runs a-seed=3 and b-seed=3 have the same config"),
        ("variants: {a: {seed: 1}}", "sweep.variants.a: 'seed' cannot be swept; list a sweep's seeds in sweep.seeds"),
        ("variants: {a: {output: x}}", "sweep.variants.a: 'output' cannot be swept"),
        ("variants: {a: {model.dim: 8, model: {dim: 16}}}", "sweep.variants.a: 'model.dim' is set twice"),
        (
            "variants: {a: {model.dim: 8}}, grid: {model.dim: [8, 16]}",
            "'model.dim' of variants is overwritten by 'model.dim' of grid",
        ),
        (
            f"variants: {{a: {{{ENCODER}.points: 8}}}}, zip: {{{ENCODER}: [{{name: dense}}]}}",
            f"'{ENCODER}.points' of variants is overwritten by '{ENCODER}' of zip",
        ),
        (
            f"variants: {{a: {{{ENCODER}: {{points: 8}}}}}}, grid: {{{ENCODER}.points: [1, 2]}}",
            f"'{ENCODER}.points' of variants is overwritten by '{ENCODER}.points' of grid",
        ),
        (
            f"{TWO}, exclude: [{{variant: dens}}]",
            "variant = 'dens' is not among its values [dense, deform]; did you mean 'dense'",
        ),
        (f"{TWO}, exclude: [{{varaint: dense}}]", "'varaint' is not swept; did you mean 'variant'"),
        ("grid: {model.dim: [8]}, exclude: [{variant: a}]", "'variant' is not swept"),
        (f"{TWO}, exclude: [{{variant: dense}}, {{variant: deform}}]", "sweep.exclude removes all runs"),
        (f"{TWO}, one_at_a_time: {{model.dim: [8]}}", "expected either variants or one_at_a_time, not both"),
        ("one_at_a_time: {model.dim: 8}", "sweep.one_at_a_time.model.dim = 8: expected list"),
        ("one_at_a_time: {model.dim: []}", "sweep.one_at_a_time.model.dim = []: expected at least one value"),
        ("one_at_a_time: {model.dimm: [8]}", "run dimm=8-seed=3: unknown key 'model.dimm'"),
        ("one_at_a_time: {model.dim: [8, 8]}", "sweep.one_at_a_time: dim=8 is listed twice"),
        ("one_at_a_time: {seed: [1]}", "sweep.one_at_a_time: 'seed' cannot be swept"),
        ("one_at_a_time: {slurm.time: [10]}", "'slurm.time' does not affect results"),
        ("one_at_a_time: {model.dim: [8]}, grid: {model.dim: [16]}", "'model.dim' of one_at_a_time is overwritten by"),
        ("variants: {}", "sweep.variants = {}: expected at least one variant"),
        ("one_at_a_time: {}", "sweep.one_at_a_time = {}: expected at least one key"),
        ("varaints: {a: {}}", "unknown key 'sweep.varaints'; did you mean 'sweep.variants'"),
    ],
)  # fmt: skip
def test_invalid_variants_are_errors(tmp_path: Path, sweep: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        runs_of(tmp_path, sweep)
    assert message in str(caught.value)
    assert "x.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sweep", "override", "key", "block"),
    [
        (f"zip: {{{ENCODER}.points: [1, 2]}}", f"{ENCODER}.points=4", f"{ENCODER}.points", "zip={...} or clear"),
        (f"zip: {{{ENCODER}.points: [1, 2]}}", f"{ENCODER}={{name: ms_deform, points: 4}}", f"{ENCODER}.points", "zip"),
        (f"zip: {{{ENCODER}.points: [1, 2]}}", "model={encoder: {attention: {points: 4}}}", f"{ENCODER}.points", "zip"),
        ("grid: {model.dim: [8, 16]}", "model.dim=16", "model.dim", "grid"),
        ("grid: {model.preset: [detr_r50]}", "model.preset=detr_r50_dc5", "model.preset", "grid"),
        (TWO, f"{ENCODER}={{name: dense}}", f"{ENCODER}.name", "variants"),
        (TWO, f"{ENCODER}.points=2", f"{ENCODER}.points", "variants"),
        ("variants: {a: {}, b: {train.steps: 9}}", "train.steps=7", "train.steps", "variants"),
        ("one_at_a_time: {model.dim: [8, 16]}", "model.dim=16", "model.dim", "one_at_a_time"),
        (f"grid: {{{BACKBONE}.name: [resnet34]}}", f"{BACKBONE}.options.x=1", f"{BACKBONE}.options.x", "grid"),
        ("seeds: [0, 1]", "seed=5", "seed", "seeds=[SEED, ...] or clear it with sweep.seeds=[]"),
    ],
)  # fmt: skip
def test_override_of_a_swept_key_is_an_error(tmp_path: Path, sweep: str, override: str, key: str, block: str) -> None:
    with pytest.raises(UserError) as caught:
        runs_of(tmp_path, sweep, override)
    assert str(caught.value).startswith(f"command line: {key} is overwritten by sweep.{block.split('=')[0]} (run ")
    assert f"sweep.{block}" in str(caught.value)


def test_other_overrides_go_with_the_sweep(tmp_path: Path) -> None:
    points = f"zip: {{{ENCODER}.points: [1, 2]}}"
    (first, _) = runs_of(tmp_path, points, f"{ENCODER}={{name: deform, level: 0}}", "model.dim=8", "jobs=2")
    assert first.config.model.encoder.attention == {"name": "deform", "level": 0, "points": 1}
    assert names(tmp_path, points, f"{ENCODER}.points=4", "sweep.zip={}") == ["seed=3"]
    assert len(names(tmp_path, "grid: {model.dim: [8, 16]}", "seed=7", f"sweep.grid.{ENCODER}.points=[1, 2]")) == 2
    assert names(tmp_path, "seeds: [0]", "sweep.seeds=[5]") == ["seed=5"]


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """Finished runs of two variants, two widths and two seeds; AP is 0.1 for dense and 0.2 for deform."""
    runs = runs_of(tmp_path, f"{TWO}, grid: {{model.dim: [16, 8]}}, seeds: [0, 1]")
    folder = SweepFolder(tmp_path / "runs" / "x")
    folder.create(runs, "x.yaml")
    for run in runs:
        ap = {"dense": 0.1, "deform": 0.2}[run.variant or ""]
        run.folder.metrics.write_text(json.dumps({"step": 5, "val/AP": ap, "val/AP50": ap}) + "\n")
        run.folder.write_status(state="done", step=5, steps=5)
    return folder


def test_comparison_starts_with_the_variant(folder: SweepFolder) -> None:
    comparison = compare([folder.path])
    assert comparison.columns == ["variant", "dim"]
    rows = [(v.options["variant"], v.options["dim"], v.seeds) for v in comparison.variants]
    assert rows == [(name, dim, (0, 1)) for name in ("dense", "deform") for dim in (16, 8)]  # the file's order
    assert "| dense | 16 | 0.100 ± 0.000 |" in markdown(comparison)


def test_keys_that_differ_within_a_variant_stay_columns(folder: SweepFolder, tmp_path: Path) -> None:
    longer = runs_of(tmp_path, f"{TWO}, grid: {{model.dim: [16, 8]}}, seeds: [0]", "train.steps=6")
    longer = folder.assign(longer)
    folder.create(longer, "x.yaml")
    assert compare([folder.path]).columns == ["variant", "dim", "steps"]


def test_comparison_of_runs_with_and_without_variant_names(folder: SweepFolder, tmp_path: Path) -> None:
    for run in runs_of(tmp_path, "grid: {model.heads: [2, 4]}", f"output={tmp_path / 'other'}", "name=y"):
        save(run.config, run.folder.config)
    comparison = compare([folder.path, tmp_path / "other" / "y"])
    assert comparison.columns[:2] == ["variant", "experiment"]
    assert [v.options["variant"] for v in comparison.variants] == ["dense", "dense", "deform", "deform", "", ""]
    assert "heads" in comparison.columns


def test_ledger_keeps_the_variant(folder: SweepFolder) -> None:
    entry = folder.entries()["dense-dim=16-seed=0"]
    assert (entry["variant"], entry["labels"], entry["overrides"][ENCODER]) == ("dense", {"dim": 16}, {"name": "dense"})
    own = expand(Experiment(folder.path / "dense-dim=16-seed=0" / "config.yaml"))
    folder.create(folder.assign(own, name="dense-dim=16-seed=0"), "config.yaml")
    assert folder.entries()["dense-dim=16-seed=0"] == entry


def test_hparams_have_the_variant(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {}

    def write(sweep: Path, options: dict, trial_ids: dict, tasks: set) -> None:
        written.update({name: (trial_ids[name], options[name]) for name in options})

    monkeypatch.setattr(hparams, "write_hparams", write)
    hparams.write_sweep(folder.path)
    trials, options = zip(*written.values(), strict=True)
    assert [trial.partition("/")[2] for trial in trials[:3]] == ["dense-dim=16", "dense-dim=16", "dense-dim=8"]
    assert options[0] == {"attention": "dense", "dim": 16, "variant": "dense"}
    assert options[-1] == {"attention": "deform", "level": 0, "dim": 8, "variant": "deform"}


def test_hparams_of_runs_that_were_compared_need_no_other_reading(folder: SweepFolder) -> None:
    records = [run for variant in compare([folder.path]).variants for run in variant.runs]
    hparams.write_sweep(folder.path)
    expected = _sessions(folder.path)
    for record in records:
        (record.source / "config.yaml").unlink()
    hparams.write_sweep(folder.path, records=records)
    assert _sessions(folder.path) == expected
    assert len(expected) == len(records)


def _sessions(sweep: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """The trial and the hyperparameters of each run, from its event file."""
    found = {}
    for path in sweep.glob("*/*.hparams"):
        (value,) = [value for event in EventFileLoader(str(path)).Load() for value in event.summary.value]
        session = HParamsPluginData.FromString(value.metadata.plugin_data.content).session_start_info
        found[path.parent.name] = (session.group_name, {key: str(item) for key, item in session.hparams.items()})
    return found
