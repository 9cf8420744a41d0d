"""A run is identified by its config, the source of its plugins and the version of its data, as recorded when made."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from support.data import coco_config, coco_folder
from support.data import edit as edit_annotations

from attnzoo import run as attnzoo_run
from attnzoo.attention.plugins import source_hash
from attnzoo.config import load as config_load
from attnzoo.config.load import Experiment, digest, find_digest, identity, load, load_saved
from attnzoo.config.options import check_versions
from attnzoo.data.scenes import DigitScenes
from attnzoo.environment import sources_hash
from attnzoo.errors import ExitCode, UserError, as_yaml
from attnzoo.report.compare import compare
from attnzoo.rundir import attempts
from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep.check_runs import check_runs
from attnzoo.sweep.expand import RunSpec, expand
from attnzoo.sweep.folder import SweepFolder, describe_restarts
from attnzoo.worker.train import train_run

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "low_rank.py"
EXPERIMENT = """
base: base/detr_scenes.yaml
name: x
plugins: [my_attention.py]
data: {dataset: {name: digit_scenes, image_size: 32, sizes: [6, 14], train_images: 24, val_images: 6}, batch_size: 4}
model: {dim: 16, heads: 2, ffn: 16, queries: 5, encoder: {attention: {name: low_rank}}}
train: {steps: 5}
"""
NO_PLUGIN = "\n".join(
    line for line in EXPERIMENT.replace("low_rank", "dense").splitlines() if not line.startswith(("plugins", "data"))
)

pytestmark = pytest.mark.usefixtures("clean_registry")


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(EXPERIMENT)
    path = tmp_path / "my_attention.py"
    path.write_text(EXAMPLE.read_text())
    return path


def edit(path: Path) -> None:
    path.write_text(path.read_text() + "# edited\n")


def assigned(*overrides: str) -> tuple[SweepFolder, list[RunSpec]]:
    experiment = Experiment("x.yaml", overrides)
    folder = SweepFolder(Path("runs/x"))
    return folder, folder.assign(check_runs(experiment, expand(experiment)))


def create(state: str, *overrides: str) -> RunSpec:
    folder, runs = assigned(*overrides)
    folder.create(runs, "x.yaml")
    for run in runs:
        run.folder.metrics.write_text('{"step": 5, "val/AP": 0.5}\n')
        run.folder.write_status(state=state, step=5, steps=5, signal="SIGINT")
    return runs[0]


@pytest.mark.parametrize("state", ["done", "interrupted"])
def test_edited_plugin_starts_a_new_run_and_is_reported(
    plugin: Path, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = create(state)
    assert assigned()[1][0].folder.path == first.folder.path
    original = plugin.read_text()
    edit(plugin)
    _, (run,) = assigned()
    assert run.folder.path.name == f"seed=0-{run.digest}"
    assert f"seed=0 has plugins ({plugin} changed)" in str(describe_restarts([run]))
    assert attnzoo_run.main(["x.yaml", "--dry-run"]) == ExitCode.OK
    assert f"1 of 1 run restarts from scratch, the first in {run.folder.path}" in capsys.readouterr().out
    assert digest(load_saved(first.folder.config)) == first.digest
    plugin.write_text(original)
    assert assigned()[1][0].folder.path == first.folder.path


def test_run_is_not_resumed_from_its_own_config_with_an_edited_plugin(plugin: Path) -> None:
    first = create("interrupted")
    edit(plugin)
    experiment = Experiment(first.folder.config)
    (run,) = SweepFolder(Path("runs/x")).assign(check_runs(experiment, expand(experiment)), name="seed=0")
    assert run.folder.path != first.folder.path


def test_worker_rejects_a_plugin_that_changed_while_its_run_waited(
    plugin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = create("interrupted")
    edit(plugin)
    before = first.folder.status.read_text()
    assert train_run(first.folder.path) == ExitCode.USER_ERROR
    assert f"{plugin} changed after this run was created" in capsys.readouterr().err
    assert first.folder.status.read_text() == before


def test_runs_of_different_plugin_code_are_not_seeds_of_one_variant(plugin: Path) -> None:
    create("done")
    edit(plugin)
    create("done", "seed=1")
    comparison = compare([Path("runs/x")])
    assert sorted(variant.seeds for variant in comparison.variants) == [(0,), (1,)]
    assert comparison.columns == ["plugins"]
    plugin.unlink()
    assert len(compare([Path("runs/x")]).variants) == 2


def test_version_of_a_synthetic_data_set_is_part_of_the_identity(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = create("done")
    assert yaml.safe_load(first.folder.config.read_text())["versions"]["data.dataset"] == "1"
    monkeypatch.setattr(DigitScenes, "version", 2)
    _, (run,) = assigned()
    assert run.folder.path != first.folder.path
    assert "versions.data.dataset = '1', now '2'" in str(describe_restarts([run]))


def test_annotations_are_part_of_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = coco_folder(tmp_path / "coco")
    dataset = as_yaml(coco_config(root).dataset)
    Path("x.yaml").write_text(f"{NO_PLUGIN}\ndata: {{dataset: {dataset}, batch_size: 4}}\n")
    first = create("done")
    assert list(load_saved(first.folder.config).versions) == ["data.dataset"]
    assert assigned()[1][0].folder.path == first.folder.path
    edit_annotations(root, lambda content: content["annotations"][0].update(bbox=[5, 4, 10, 11]))
    _, (run,) = assigned()
    assert run.folder.path != first.folder.path
    assert "versions.data.dataset = " in str(describe_restarts([run]))
    first.folder.write_status(state="interrupted", step=1, steps=5, signal="SIGINT")
    assert train_run(first.folder.path) == ExitCode.USER_ERROR
    assert "versions: data.dataset changed after this run was created" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "experiment"),
    [
        ("model.backbone.weights", ""),
        ("model.weights", ""),
        ("model.weights", "task: classification\nname: x\ntrain: {steps: 5}"),
    ],
)
def test_weights_are_part_of_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, experiment: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(experiment or NO_PLUGIN)
    Path("weights.pt").write_bytes(b"1")
    first, again = (load("x.yaml", [f"{key}=weights.pt"]) for _ in range(2))
    assert (digest(first), list(first.versions)) == (digest(again), ["data.dataset", key])
    Path("weights.pt").write_bytes(b"22")
    assert digest(load("x.yaml", [f"{key}=weights.pt"])) != digest(first)
    with pytest.raises(UserError, match=rf"versions: {key} changed"):
        check_versions(first)
    Path("weights.pt").unlink()
    check_versions(first)  # building the model names the file


def test_module_is_identified_by_its_source(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(plugin.parent)
    first = create("done", "plugins=[my_attention]")
    edit(plugin)
    assert assigned("plugins=[my_attention]")[1][0].digest != first.digest


@pytest.mark.parametrize("source", ["my_attention.py", "my_attention"])
def test_modules_that_a_plugin_imports_are_part_of_it(
    plugin: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Those of its folder, also imported by each other, relatively or inside a function; installed ones are not."""
    monkeypatch.syspath_prepend(plugin.parent)
    monkeypatch.syspath_prepend(plugin.parent / ".venv" / "site-packages")
    for name, text in {
        "my_helper.py": "import my_installed\nfrom my_parts import inner\nSCALE = 1.0\n",
        "my_parts/__init__.py": "",
        "my_parts/inner.py": "def f():\n    from . import later\n",
        "my_parts/later.py": "",
        "my_parts/unused.py": "",
        "unrelated.py": "",
        ".venv/site-packages/my_installed.py": "",
    }.items():
        (plugin.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (plugin.parent / name).write_text(text)
    plugin.write_text(f"from my_helper import SCALE\n{plugin.read_text()}")
    create("done", f"plugins=[{source}]")
    for other in ("unrelated.py", "my_parts/unused.py", ".venv/site-packages/my_installed.py"):
        edit(plugin.parent / other)
    assert assigned(f"plugins=[{source}]")[1][0].folder.path.name == "seed=0"
    hashes = [source_hash(source)]
    for edited in ("my_helper.py", "my_parts/inner.py", "my_parts/later.py", "my_parts/__init__.py"):
        edit(plugin.parent / edited)
        hashes.append(source_hash(source))
    assert len(set(hashes)) == 5
    (run,) = assigned(f"plugins=[{source}]")[1]
    assert run.folder.path.name == f"seed=0-{run.digest}"
    assert "plugins (" in str(describe_restarts([run]))


def test_package_is_identified_by_all_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "my_package"
    package.mkdir()
    for name in ("__init__.py", "core.py"):
        (package / name).write_text("")
    before = source_hash("my_package")
    edit(package / "core.py")
    assert source_hash("my_package") != before


def test_finished_runs_of_other_sources_are_named_and_not_trained_again(
    plugin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = "sweep.seeds=[0, 1, 2]"
    create("done", seeds)
    current = sources_hash()
    recorded = {0: {"sources": current}, 1: {"sources": "0ld50c35"}, 2: None}
    for seed, environment in recorded.items():
        attempts.record_start(RunFolder(f"runs/x/seed={seed}"), 0, 0, environment)
    assert attnzoo_run.main(["x.yaml", seeds]) == ExitCode.OK
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "other sources" in line]
    assert line == (
        "2 of 3 finished runs were trained by other sources of attnzoo (0ld50c35, unknown; now "
        f"{current}); delete the folder of a run to train it again"
    )
    assert "3 of 3 runs are already done" in out
    assert attnzoo_run.main(["x.yaml", "sweep.seeds=[0]"]) == ExitCode.OK
    assert "other sources" not in capsys.readouterr().out


def test_ledger_has_the_recorded_digest(plugin: Path) -> None:
    first = create("done")
    edit(plugin)
    create("done")
    entries = json.loads(Path("runs/x/sweep.json").read_text())["runs"]
    assert len({entry["digest"] for entry in entries.values()}) == 2
    assert entries["seed=0"]["digest"] == first.digest


def test_runs_keep_their_config_when_an_option_is_added(plugin: Path) -> None:
    """With its default; the saved config does not have it."""
    old = load_saved(create("done").folder.config)
    new = dataclasses.replace(old, model=copy.deepcopy(old.model))
    assert old.model.decoder.attention.pop("points") == 4
    assert digest(old) != digest(new)
    assert find_digest(old, ["00000000", digest(new)]) == digest(new)
    new.model.decoder.attention["points"] = 8
    assert find_digest(old, [digest(new)]) is None


def test_runs_keep_their_digest_when_a_key_is_added(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create("done")
    monkeypatch.setattr(
        config_load, "identity", lambda config: {key: v for key, v in identity(config).items() if key != "threads"}
    )
    assert digest(load_saved(run.folder.config)) == run.digest
