"""Configs that nobody would write on purpose give one line, before anything is written."""

import contextlib
import copy
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnzoo.config.load import Experiment
from attnzoo.errors import UserError
from attnzoo.run import main
from attnzoo.schema import yaml12
from attnzoo.sweep.expand import expand

BASE: dict[str, Any] = {
    "name": "hostile",
    "output": "runs",
    "threads": 1,
    "data": {"dataset": {"name": "digit_scenes", "train_images": 8, "val_images": 4, "image_size": 64}},
    "model": {
        "dim": 16,
        "heads": 2,
        "backbone": {"name": "resnet18", "options": {"layers": [1, 1, 1, 1]}, "strides": [16, 32]},
        "encoder": {"layers": 1, "attention": {"name": "ms_deform", "points": 1}},
        "decoder": {"layers": 1},
    },
    "train": {"steps": 4, "optimizer": {"name": "adamw", "lr": 1e-4}},
    "slurm": {"time": "01:00:00", "options": {"nice": 10}},
    "sweep": {"variants": {"a": {"train.stream": 1}, "b": {}}, "grid": {"train.clip": [0.1, 0.2]}, "seeds": [0]},
}

words = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["a" * 300, "a/b", "../x", "~", "${seed}", "${x", "\\${", "a\x00b", "\ud7ff", "\n", "on", "1e5", ""]
    ),
)
numbers = st.one_of(st.sampled_from([0, -1, 1, 3, 10**6, 10**30, -(10**30), 1e300, float("inf"), float("nan")]))
scalars = st.one_of(words, numbers, st.none(), st.booleans())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=6,
)


def keys(block: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of all keys of nested mappings."""
    own = [(*prefix, key) for key in block]
    return own + [
        path for key, value in block.items() if isinstance(value, dict) for path in keys(value, (*prefix, key))
    ]


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """BASE with one to three keys replaced, removed, or joined by another."""
    config = copy.deepcopy(BASE)
    for _ in range(draw(st.integers(1, 3))):
        *parents, key = draw(st.sampled_from(keys(config)))
        block: Any = config
        for parent in parents:
            block = block.get(parent) if isinstance(block, dict) else None
        if not isinstance(block, dict):
            continue
        change = draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "remove":
            block.pop(key, None)
        else:
            block[key if change == "replace" else draw(words)] = draw(values)
    return config


def assert_one_line(error: UserError) -> None:
    assert str(error)
    assert "Traceback" not in str(error)


@settings(derandomize=True, deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(config=mutated())
def test_mutated_configs_are_read_or_refused(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.yaml"
    path.write_text(yaml12.dump(config), encoding="utf-8")
    try:
        expand(Experiment(path))
    except UserError as error:
        assert_one_line(error)


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
@given(config=mutated())
def test_mutated_configs_are_listed_or_refused(
    config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.yaml"
    path.write_text(yaml12.dump(config), encoding="utf-8")
    dry_run(path)


@pytest.mark.slow
@pytest.mark.parametrize("value", [10**30, -1, "a\x00b", "a" * 300, [1, 1, 1], {}], ids=lambda value: repr(value)[:9])
def test_every_key_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    """With one value without sense at a time."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.yaml"
    for *parents, key in keys(BASE):
        config = copy.deepcopy(BASE)
        block: Any = config
        for parent in parents:
            block = block[parent]
        block[key] = value
        path.write_text(yaml12.dump(config), encoding="utf-8")
        dry_run(path)


def dry_run(path: Path, *overrides: str) -> str:
    """What `run --dry-run` writes to stderr: nothing, or one line that says what is wrong."""
    out, err = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: print(message, file=err)  # pytest would collect them
        code = main([str(path), "--dry-run", *overrides])
    lines = err.getvalue().splitlines()
    assert (code, len(lines)) in [(0, 0), (2, 1)], err.getvalue()
    assert len(err.getvalue()) < 1200
    return err.getvalue().removeprefix("error: command line: ").strip()


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "base.yaml"
    path.write_text(yaml12.dump({key: value for key, value in BASE.items() if key != "sweep"}))
    return path


LAYERS = ("[1, 1, 1]", "[1, 1, 1, 1, 1]", "[1, 1, -1, 1]", "[1, 0, 1, 1]", "[1, 1, a, 1]", "[1, 1, 1.5, 1]", "3", "[]")
FOUR = "expected four numbers at least 1, one for each stage"
SWIN = "model.backbone={name: swin_tiny_patch4_window7_224"
HOSTILE = [
    *((f"model.backbone.options={{layers: {layers}}}", FOUR) for layers in LAYERS),
    ("model.backbone.options={channels: [0, 32, 48, 64]}", "options.channels = [0, 32, 48, 64]: expected four numbers"),
    ("model.backbone.options={block: x}", "options.block = 'x': the kind of blocks is that of resnet18; set"),
    ("model.backbone.options={stem_width: -3}", "model.backbone.options.stem_width = -3: expected a number at least 1"),
    (f"{SWIN}, options: {{depths: [2, 2, -6, 2]}}}}", "options.depths = [2, 2, -6, 2]: expected numbers at least 1"),
    (f"{SWIN}, options: {{window_size: 0}}}}", "options.window_size = 0: expected a number at least 1"),
    ("model.backbone.options={act_layer: x}", "act_layer: x}: KeyError: 'x'"),
    (f"model.backbone.options={{a: {'[' * 200}{']' * 200}}}", "not valid YAML: nested deeper than 64 levels"),
    (f"model.backbone.options={{a: {'[' * 60}{']' * 60}}}", "unexpected keyword argument 'a'"),
    (f"slurm.options={{a: {'[' * 300}{']' * 300}}}", "not valid YAML: nested deeper than 64 levels"),
    (f"train.optimizer.lr=1{'0' * 400}", "an integer of more than 100 digits"),
    (f"seed=0x1{'0' * 5000}", "an integer of more than 100 digits"),
    ("description=\udcff", "description: text with a NUL character, or not in UTF-8"),
    ("output=runs/\udcff", "output: text with a NUL character, or not in UTF-8"),
    ("output=~nosuchuser/x", ""),
    ("plugins=[~nosuchuser/x.py]", "~nosuchuser/x.py': no such file"),
    ("slurm.profile=~nosuchuser/x.yaml", "'~nosuchuser/x.yaml': no such file"),
    ("description=${${name}}", "interpolations contain themselves, or lead to more than 100,000 values"),
    ("description=${description}", "interpolations contain themselves"),
    ("description=${oc.decode:'[1'}", "description: "),
    ('output="a\\0b"', "text with a NUL character"),
    ('plugins=["a\\0b.py"]', "text with a NUL character"),
    ("output=base.yaml", "base.yaml is a file, not a folder"),
    (f"output={'a' * 300}", "File name too long"),
    (f"output={'a/' * 3000}", "File name too long"),
    (f"name={'n' * 300}", "name: 300 bytes long: expected at most 200"),
    ("model.encoder.layers=1000000", "model.encoder.layers = 1000000: expected a number at least 0 and at most 1000"),
    ("model.dim=1000000000", "model: cannot be built: Storage size calculation overflowed"),
    ("model.encoder.attention.points=1000000000", "parameters: expected at most 100,000,000,000"),
    ("train.steps=1" + "0" * 30, "and at most 1000000000"),
    ("threads=1000000000", "threads = 1000000000: expected a number at least 1 and at most 1024"),
    ("data.dataset.train_images=1000000000000", "expected from 1 to 10,000,000"),
    ("data.dataset.objects=[1, 100000000]", "data.dataset.objects = [1, 100000000]: expected at most 4096"),
    ("sweep={seeds: {until: decided, at_most: 10000000}, variants: {a: {}, b: {train.clip: 1}}}", "20,000,000 runs"),
    (
        f"sweep.grid={{train.stream: {[*range(215)]}, train.clip: {[*range(1, 216)]}, threads: {[*range(1, 216)]}}}",
        "sweep: 9,938,375 runs: expected at most 10,000",
    ),
    ("steps=100", "unknown key 'steps'; did you mean 'train.steps'?"),
    ("lr=0.1", "did you mean 'train.optimizer.lr'?"),
    ("layers=2", "did you mean 'model.encoder.layers' or 'model.decoder.layers'?"),
    ("train.optimizer=adamw", "did you mean train.optimizer.name = 'adamw'?"),
    ("points=3", "unknown key 'points'; did you mean 'model.encoder.attention.points' or 'model.decoder"),
    ("model.points=3", "did you mean 'model.encoder.attention.points' or 'model.decoder.attention.points'?"),
    ("image_size=32", "did you mean 'data.dataset.image_size'?"),
    ("trian.steps=2", "did you mean 'train'?"),
    ("seeds=3", "did you mean 'sweep.seeds'?"),
    ("model.encoder.attention=dense", "did you mean model.encoder.attention.name = 'dense'?"),
    ("train.epochs=3", "both are set; set train.steps = null to train for epochs"),
]


@pytest.mark.parametrize(("override", "message"), HOSTILE, ids=[override[:40] for override, _ in HOSTILE])
def test_hostile_override_is_one_line(base: Path, override: str, message: str) -> None:
    before = sorted(base.parent.iterdir())
    assert message in dry_run(base, override)
    assert sorted(base.parent.iterdir()) == before


def test_number_of_modules_is_limited(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnzoo.models.dry_run.MAX_MODULES", 500)
    assert not dry_run(base)
    message = dry_run(base, "model.backbone.options={layers: [1, 1, 1, 1000000]}")
    assert message == "model: has more than 500 modules; use fewer layers"


def test_keys_of_a_file_are_not_dotted(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: x\nmodel.encoder.layers: 3\n")
    assert "keys of a file are nested, not dotted: model: {encoder: {layers: …}}" in dry_run(path)
    path.write_text("name: x\nsweep: {train.steps: [1, 2]}\n")
    assert "swept keys are in sweep.grid: {train.steps: […]}" in dry_run(path)


def test_overrides_without_a_file(tmp_path: Path) -> None:
    assert "expected an experiment file before overrides" in dry_run(Path("train.steps=3"))


@pytest.mark.parametrize("kind", ["deep", "wide"])
def test_number_of_bases_is_limited(tmp_path: Path, kind: str) -> None:
    """A chain of 1,100 files; and 40 files that each name the next twice, which are 2⁴⁰."""
    count, times = {"deep": (1100, 1), "wide": (40, 2)}[kind]
    for i in range(count):
        (tmp_path / f"{i}.yaml").write_text(f"base: {[f'{i + 1}.yaml'] * times}\n")
    (tmp_path / f"{count}.yaml").write_text("name: x\n")
    assert "base: more than 100 files" in dry_run(tmp_path / "0.yaml")


def test_long_names_end_with_a_digest(base: Path) -> None:
    long = [[f"{letter}ord{i}" for i in range(60)] for letter in "wv"]
    runs = expand(Experiment(base, [f"sweep={{grid: {{train.optimizer.no_decay: {long}}}}}"]))
    assert len({run.name for run in runs}) == 2
    assert all(len(run.name) < 128 for run in runs)
    assert runs[0].name.startswith("no_decay=word0,word1,")
    variants = f"{{{'v' * 300}: {{}}, {'v' * 299}: {{train.clip: 1}}}}"
    runs = expand(Experiment(base, [f"sweep={{variants: {variants}, baseline: {'v' * 300}}}"]))
    assert len({run.name for run in runs}) == 2


PLUGINS = {
    "exits": ("def __init__(self, slot): sys.exit(3)", "model: cannot be built: SystemExit: 3"),
    "leaves": (
        "def forward(self, queries, memory): sys.exit(3)",
        "does not run on images of 64 x 64 pixels: SystemExit",
    ),
    "cuts": (
        "def forward(self, queries, memory): return queries.tokens[:, :, :3]",
        "model.encoder.0.attention: attention 'cuts' in role encoder returned (2, 20, 3): expected (2, 20, 16)",
    ),
    "nothing": (
        "def forward(self, queries, memory): pass",
        "attention 'nothing' in role encoder returned NoneType: expected (2, 20, 16)",
    ),
}


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.usefixtures("clean_registry")
def test_plugin_that_misbehaves_is_one_line(base: Path, name: str) -> None:
    body, message = PLUGINS[name]
    head = "import sys\nfrom attnzoo.attention import Attention, register\n"
    base.with_name("mine.py").write_text(f"{head}@register({name!r})\nclass Mine(Attention):\n    {body}\n")
    overrides = ["plugins=[mine.py]", f"model.encoder.attention={{name: {name}}}", "model.neck.c6=false"]
    assert message in dry_run(base, *overrides)


@pytest.mark.usefixtures("clean_registry")
@pytest.mark.parametrize("kind", ["class", "function"])
def test_plugin_that_is_no_attention(base: Path, kind: str) -> None:
    body = {"class": "class Mine:\n    pass\n", "function": "def Mine(slot):\n    pass\n"}[kind]
    base.with_name("mine.py").write_text(f"from attnzoo.attention import register\n@register('mine')\n{body}")
    message = f"attention 'mine' is the {kind} Mine: expected a subclass of attnzoo.attention.Attention"
    assert message in dry_run(base, "plugins=[mine.py]")
