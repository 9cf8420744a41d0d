"""Columns of a comparison, and which variants are paired, with several kinds of experiments."""

import csv
import json
from pathlib import Path

import pytest

from attnzoo.config.load import Experiment, save
from attnzoo.errors import UserError
from attnzoo.report.compare import compare
from attnzoo.report.table import write_comparison
from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep.check_runs import check_runs
from attnzoo.sweep.expand import expand

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_classifiers_show_their_own_columns(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "name: x\ntask: classification\ntrain: {steps: 5}\nsweep: {grid: {model.preset: [swin_tiny, dat_tiny]}}\n"
    )
    for number, run in enumerate(expand(Experiment(tmp_path / "x.yaml"))):
        target = RunFolder(tmp_path / "runs" / run.name)
        save(run.config, target.config)
        rows = [
            {"step": 0, "cost/params": 1000, "cost/gflops": 0.5, "cost/ms": 2.0},
            {"step": 5, "train/loss": 1.0, "speed/images_per_second": 100.0 + number, "speed/peak_mib": 200.0 + number},
            {"step": 5, "val/top1": 0.5 + number / 10, "val/top5": 0.9},
        ]
        target.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
        target.write_status(state="done", step=5, steps=5)
    write_comparison(compare([tmp_path / "runs"]), tmp_path)
    rows = list(csv.DictReader((tmp_path / "comparison.csv").open()))
    found = {row["top1"]: row["peak_mib"] for row in rows}
    assert found == {"0.5": "200.0", "0.6": "201.0"}
    assert "AP" not in rows[0]
    assert "| top-1 | top-5 | params | GFLOPs | peak MiB | seeds |" in (tmp_path / "comparison.md").read_text()
    assert not {"ms", "images_per_second"} & set(rows[0])  # times beside another run's training order nothing


@pytest.mark.parametrize(("datasets", "paired"), [("{name: read}, {name: find}", False), ("{name: find}", True)])
def test_different_probes_are_not_paired(datasets: str, paired: bool, tmp_path: Path) -> None:
    sweep = f"{{grid: {{data.dataset: [{datasets}], model.heads: [1, 4]}}}}"
    (tmp_path / "x.yaml").write_text(f"name: x\ntask: probe\ntrain: {{steps: 5}}\nsweep: {sweep}\n")
    for run in expand(Experiment(tmp_path / "x.yaml")):
        target = RunFolder(tmp_path / "runs" / run.name)
        save(run.config, target.config)
        target.metrics.write_text('{"step": 5, "val/accuracy": 0.5, "val/chance": 0.2}\n')
        target.write_status(state="done", step=5, steps=5)
    comparison = compare([tmp_path / "runs"])
    assert (comparison.paired is not None) == paired
    if not paired:
        with pytest.raises(UserError, match="expected several variants of one task and data set"):
            compare([tmp_path / "runs"], baseline="heads=1")


def test_options_implied_by_a_name_are_not_columns(tmp_path: Path) -> None:
    """Options that not all attentions take; those that differ where they do remain."""
    (tmp_path / "x.yaml").write_text(
        "name: x\ntrain: {steps: 5}\nsweep:\n  zip:\n    model.encoder.attention:\n"
        "    - {name: window, window: 4}\n    - {name: window, window: 8}\n    - {name: dat}\n    - {name: ms_deform}\n"
    )
    experiment = Experiment(tmp_path / "x.yaml")
    for run in check_runs(experiment, expand(experiment)):  # which fills in all defaults: a `bias` of two types too
        target = RunFolder(tmp_path / "runs" / run.name)
        save(run.config, target.config)
        target.metrics.write_text('{"step": 5, "val/AP": 0.5}\n')
        target.write_status(state="done", step=5, steps=5)
    comparison = compare([tmp_path / "runs"])
    assert comparison.columns == ["attention", "window"]
    found = [(v.options["attention"], v.options.get("window")) for v in comparison.variants]
    assert sorted(found, key=str) == [("dat", None), ("ms_deform", None), ("window", 4), ("window", 8)]


def test_options_implied_by_a_backbone_are_not_columns(tmp_path: Path) -> None:
    """Options whose defaults differ by name; those that a sweep changes remain."""
    (tmp_path / "x.yaml").write_text(
        "base: base/detr_scenes.yaml\nname: x\nsweep:\n  zip:\n    model.backbone:\n"
        "    - {name: resnet18}\n    - {name: swin_pico}\n    - {name: dat_pico}\n"
        "    - {name: dat_pico, options: {stage2: {second: {groups: 1}}}}\n"
    )
    experiment = Experiment(tmp_path / "x.yaml")
    for run in check_runs(experiment, expand(experiment)):
        target = RunFolder(tmp_path / "runs" / run.name)
        save(run.config, target.config)
        target.metrics.write_text('{"step": 5, "val/AP": 0.5}\n')
        target.write_status(state="done", step=5, steps=5)
    comparison = compare([tmp_path / "runs"])
    assert comparison.columns == ["backbone", "second", "groups"]
    found = [tuple(v.options.get(column) for column in comparison.columns) for v in comparison.variants]
    assert found == [
        ("dat_pico", "dat", 1),
        ("dat_pico", "dat", 2),
        ("resnet18", None, None),
        ("swin_pico", "window", None),
    ]


def create(folder: Path, text: str) -> Path:
    """Finished runs of an experiment, with AP of 0.1 and the seed."""
    folder.mkdir()
    (folder / "x.yaml").write_text(text)
    entries = {}
    for run in expand(Experiment(folder / "x.yaml")):
        target = RunFolder(folder / "runs" / run.name)
        save(run.config, target.config)
        target.metrics.write_text(json.dumps({"step": 5, "val/AP": 0.1 + run.seed / 100}) + "\n")
        target.write_status(state="done", step=5, steps=5)
        entries[run.name] = {"variant": run.variant, "overrides": run.overrides, "seed": run.seed, "digest": run.digest}
    (folder / "runs" / "sweep.json").write_text(json.dumps({"runs": entries, "baseline": "a"}))
    return folder / "runs"


def test_other_data_give_a_warning(tmp_path: Path) -> None:
    """Scores on other images are not pairs, even where the name of the variant hides the option."""
    variants = "a: {data.dataset: {val_images: 20}}, b: {data.dataset: {val_images: 24}}"
    folder = create(
        tmp_path / "1", f"name: x\ntrain: {{steps: 5}}\nsweep: {{variants: {{{variants}}}, seeds: [0, 1]}}\n"
    )
    warning = "Warning: data.dataset.val_images differs (20, 24): scores are not of the same data."
    assert warning in compare([folder]).warnings


def test_values_of_several_data_sets_are_all_named(tmp_path: Path) -> None:
    """Only the values of the last data set with the option were."""
    variants = ", ".join(
        f"{name}-{count}: {{data.dataset: {{name: {name}, train_images: {count}}}}}"
        for name, counts in (("digits", (10, 20)), ("patterns", (30, 40)))
        for count in counts
    )
    text = f"task: classification\nname: x\ntrain: {{steps: 5}}\nsweep: {{variants: {{{variants}}}, seeds: [0, 1]}}\n"
    warnings = compare([create(tmp_path / "1", text)]).warnings
    assert "Warning: data.dataset.train_images differs (10, 20, 30, 40): scores are not of the same data." in warnings


def test_several_probes_give_no_warning_about_data() -> None:
    """Every option of one probe was said to differ from those of the others; their scores are not compared."""
    assert not [line for line in compare([RESULTS / "probes"]).warnings if "of the same data" in line]


def test_a_baseline_that_two_sweeps_have_is_not_chosen(tmp_path: Path) -> None:
    """Without a baseline on the command line, the first variant is; the names tell the sweeps apart."""
    sweep = "train: {steps: 5}\nsweep: {variants: {a: {train.optimizer.lr: 1e-3}, b: {}}, seeds: [0, 1]}\n"
    folders = [create(tmp_path / name, f"name: {name}\n{sweep}") for name in ("one", "two")]
    paired = compare(folders).paired
    assert paired is not None
    assert (paired.baseline, paired.is_given) == ("a, experiment=one", False)
    with pytest.raises(UserError, match="--baseline: unknown variant 'a'"):
        compare(folders, baseline="a")
