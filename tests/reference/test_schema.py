"""The JSON Schema of experiment files agrees with what loads them, and the reference page is current."""

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from attnzoo.__main__ import main
from attnzoo.config.files import PACKAGED
from attnzoo.config.load import Experiment, load, save
from attnzoo.config.options import resolve_options
from attnzoo.errors import UserError
from attnzoo.reference.json_schema import experiment_schema
from attnzoo.reference.page import reference_page
from attnzoo.schema import yaml12

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return experiment_schema()


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> Draft7Validator:
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


def problems(validator: Draft7Validator, values: Any) -> list[str]:
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(values)]


@pytest.mark.parametrize("path", sorted(PACKAGED.rglob("*.yaml")), ids=lambda path: path.stem)
def test_experiments_fit(validator: Draft7Validator, path: Path) -> None:
    assert not problems(validator, yaml12.read(path))


@pytest.mark.parametrize("name", ["cross_slots", "dat_imagenet", "probes"])
def test_saved_configs_fit(validator: Draft7Validator, name: str, tmp_path: Path) -> None:
    """With all keys and options written out."""
    overrides = [f"data.dataset.root={tmp_path}"] if name == "dat_imagenet" else []
    config = load(PACKAGED / f"{name}.yaml", overrides)
    save(config, tmp_path / "config.yaml")
    assert not problems(validator, yaml12.read(tmp_path / "config.yaml"))


VALID = [
    "seed: ${train.steps}",
    "jobs: auto",
    "data: {dataset: {image_size: 32}}",
    "data: {dataset: {name: digit_scenes, seed: run, sizes: [6, 7]}}",
    "data: {augment: {name: detr, scales: [32]}}",
    "model: {encoder: {attention: {name: window, shift: alternate}}}",
    "model: {preset: detr_r50, weights: null, backbone: {freeze: []}}",
    "model: {backbone: {name: dat_tiny, options: {stage3.second.groups: 3, stage2: {depth: 1}}}}",
    "model: {backbone: {name: resnet18, options: {anything: 1}}}",
    "sweep: {grid: {train.optimizer.lr: [1e-3], model.encoder.attention.points: [1, 2]}}",
    "sweep: {variants: {a: {}, b: {model.dim: 64, model: {heads: 4}}}}",
    "sweep: {grid: {model.dim: [32, 64]}, seeds: {until: decided, at_most: 20}}",
    "task: probe\ndata: {dataset: {name: read, places: 4}}",
    "task: classification\nmodel: {preset: swin_tiny, stage3: {second: {name: dat, groups: 3}}}",
]
INVALID = [
    "sed: 1",
    "seed: -1",
    "seed: '1'",
    "jobs: many",
    "per_class: 1",
    "task: segmentation",
    "train: {steps: 5, step: 5}",
    "train: {steps: 5, clip: 0}",
    "train: {steps: 5, schedule: {name: linear}}",
    "train: {steps: 5, optimizer: {lr_multipliers: {backbone: -1}}}",
    "data: {dataset: {name: coccoo}}",
    "data: {dataset: {name: digit_scenes, sizes: [6]}}",
    "data: {augment: {name: none, gain: 1.0}}",
    "model: {encoder: {attention: {name: window, points: 4}}}",
    "model: {encoder: {attention: {name: ms_deform, offsets: fixed}}}",
    "model: {encoder: {attention: {name: ms_deform, points: 4.5}}}",
    "model: {preset: swin_tiny}",
    "model: {backbone: {name: dat_tiny, options: {stage3: {secnd: {}}}}}",
    "model: {backbone: {strides: []}}",
    "sweep: {grid: {train.optimiser.lr: [1e-3]}}",
    "sweep: {grid: {train.optimizer.lr: 1e-3}}",
    "sweep: {variants: {a: {model.dimm: 64}}}",
    "task: probe\nmodel: {preset: detr_r50}",
    "task: classification\nmodel: {queries: 5}",
    "task: classification\nper_class: true",
]


def write(path: Path, content: str) -> Path:
    train = "" if content.startswith("train") else "train: {steps: 5}\n"
    path.write_text(f"name: x\n{train}{content}\n")
    return path


def load_all(path: Path) -> None:
    from attnzoo.sweep.expand import expand

    for run in expand(Experiment(path)):
        resolve_options(run.config)


@pytest.mark.parametrize("content", VALID)
def test_what_loads_fits(validator: Draft7Validator, tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "x.yaml", content)
    load_all(path)
    assert not problems(validator, yaml12.read(path))


@pytest.mark.parametrize("content", INVALID)
def test_what_does_not_load_does_not_fit(validator: Draft7Validator, tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "x.yaml", content)
    with pytest.raises(UserError):
        load_all(path)
    assert problems(validator, yaml12.read(path))


def test_keys_have_descriptions_defaults_and_choices(schema: dict[str, Any]) -> None:
    model = schema["definitions"]["detection"]["properties"]["model"]["properties"]
    assert model["queries"] == {
        "type": ["integer", "string"],
        "minimum": 1,
        "maximum": 10**9,
        "pattern": r"\$\{",
        "default": 300,
        "description": "object queries",
    }
    stages = schema["definitions"]["classification"]["properties"]["model"]["properties"]
    assert [stages[f"stage{i}"]["properties"]["dim"]["default"] for i in (1, 2, 3, 4)] == [96, 192, 384, 768]
    names = schema["definitions"]["attention"]["properties"]["name"]["oneOf"]
    assert {"ms_deform", "dat", "window"} <= {name["const"] for name in names}
    assert all(name["description"] for name in names)


def test_a_plugin_adds_its_attentions(tmp_path: Path, clean_registry: None, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "my_attention.py"
    plugin.write_text((DOCS / "examples" / "low_rank.py").read_text())
    values = {"name": "x", "model": {"encoder": {"attention": {"name": "low_rank"}}}}
    assert problems(Draft7Validator(experiment_schema()), values)
    assert main(["schema", str(plugin), "-o", str(tmp_path / "schema.json")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'schema.json'}\n"
    assert not problems(Draft7Validator(json.loads((tmp_path / "schema.json").read_text())), values)
    assert main(["schema", str(tmp_path / "none.py")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_reference_page_is_current() -> None:
    """`python -m attnzoo schema --markdown -o docs/config-reference.md` writes it."""
    assert (DOCS / "config-reference.md").read_text() == reference_page()


def test_examples_of_the_docs_fit(validator: Draft7Validator, tmp_path: Path) -> None:
    """The blocks of docs/config-and-sweeps.md that are experiment files in part."""
    page = (DOCS / "config-and-sweeps.md").read_text()
    blocks = [block for block in page.split("\n\n") if block.startswith("    sweep:")]
    assert len(blocks) == 2
    for block in blocks:
        (tmp_path / "x.yaml").write_text(textwrap.dedent(block))
        assert not problems(validator, yaml12.read(tmp_path / "x.yaml"))
