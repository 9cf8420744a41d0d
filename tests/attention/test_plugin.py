"""An attention in one file outside the package: it is loaded, built and fulfils the contract."""

from pathlib import Path

import pytest

from attnzoo.attention import ATTENTIONS, build, load_accepted, load_plugin
from attnzoo.contract import CLAUSES, Case
from attnzoo.errors import UserError
from attnzoo.geometry import Role, Slot

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "low_rank.py"
FAST_CLAUSES = [clause for clause in CLAUSES if not clause.startswith("compile")]

pytestmark = pytest.mark.usefixtures("clean_registry")


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A user's copy of the example, under another name."""
    path = tmp_path / "my_attention.py"
    path.write_text(EXAMPLE.read_text().replace('@register("low_rank")', '@register("mine")'))
    return path


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("clause", FAST_CLAUSES)
def test_example_fulfils_the_contract(clause: str, role: Role, plugin: Path) -> None:
    assert load_plugin(plugin) == ["mine"]
    CLAUSES[clause](Case("mine", role))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("clause", [clause for clause in CLAUSES if clause not in FAST_CLAUSES])
def test_example_compiles(clause: str, role: Role, plugin: Path) -> None:
    load_plugin(plugin)
    CLAUSES[clause](Case("mine", role))


def test_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 60
    assert load_plugin(EXAMPLE) == ["low_rank"]


def test_example_pools_tokens(plugin: Path) -> None:
    load_plugin(plugin)
    attention = build("mine", Slot(16, 4), rank=3)
    assert attention.pool.out_features == 3
    with pytest.raises(UserError, match="rank = 0: must be at least 1"):
        build("mine", Slot(16, 4), rank=0)


def test_loading_twice_changes_nothing(plugin: Path) -> None:
    assert load_plugin(plugin) == ["mine"]
    constructor = ATTENTIONS.get("mine")
    assert load_plugin(str(plugin)) == ["mine"]
    assert ATTENTIONS.get("mine") is constructor


def test_loads_a_module_by_name(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(plugin.parent)
    assert load_plugin("my_attention") == ["mine"]
    assert load_plugin("my_attention") == ["mine"]


def test_rejects_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"plugins: plugin '.*nothing.py': no such file"):
        load_plugin(tmp_path / "nothing.py", where="plugins")
    for name in ("no_such_module", "no_such.module", "", ".relative"):
        with pytest.raises(UserError, match="no such module"):
            load_plugin(name)
    with pytest.raises(UserError, match=r"a folder, not a module \(a file is given by its path, ending in .py\)"):
        load_plugin(str(tmp_path))


def test_rejects_a_module_without_attentions(tmp_path: Path) -> None:
    path = tmp_path / "my_empty.py"
    path.write_text("x = 1\n")
    for _ in range(2):
        with pytest.raises(UserError, match="registers no attention"):
            load_plugin(path)
    with pytest.raises(UserError, match="registers no attention"):
        load_plugin("json")


def test_rejects_a_duplicate_name(tmp_path: Path) -> None:
    path = tmp_path / "my_dense.py"
    path.write_text(EXAMPLE.read_text().replace('@register("low_rank")', '@register("dense")'))
    dense = ATTENTIONS.get("dense")
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            load_plugin(path)
        line = 1 + path.read_text().splitlines().index('@register("dense")')
        assert str(caught.value) == f"{path}:{line}: attention 'dense' is already registered by attnzoo.attention.dense"
    assert ATTENTIONS.get("dense") is dense


def test_syntax_error_is_one_line_with_file_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my_typo.py"
    path.write_text("x = 1\ndef f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    for source in (path, "my_typo"):
        with pytest.raises(UserError) as caught:
            load_plugin(source, where="plugins")
        assert str(caught.value) == f"plugins: {path}:2: SyntaxError: invalid syntax"


BROKEN = {
    "import no_such_library": "ModuleNotFoundError: No module named 'no_such_library'",
    "import json; json.loads('{')": "JSONDecodeError: Expecting property name enclosed in double quotes: line 1",
    "raise SystemExit(3)": "SystemExit: 3",
    "assert 1 > 2": "AssertionError",
}


@pytest.mark.parametrize("statement", BROKEN)
def test_error_in_importing_is_one_line_with_its_place(
    statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the plugin's own line, not that of the library in which the error is raised."""
    path = tmp_path / "my_broken.py"
    path.write_text(f"x = 1\n{statement}\n")
    monkeypatch.syspath_prepend(tmp_path)
    for source in (path, "my_broken"):
        for _ in range(2):
            with pytest.raises(UserError) as caught:
                load_plugin(source, where="plugins")
            assert str(caught.value).startswith(f"plugins: {path}:2: {BROKEN[statement]}")
            assert "\n" not in str(caught.value)


def test_error_below_an_attention_leaves_none_registered(plugin: Path) -> None:
    whole = plugin.read_text()
    plugin.write_text(f"{whole}\n1 / 0\n")
    for _ in range(2):
        with pytest.raises(UserError, match="ZeroDivisionError"):
            load_plugin(plugin)
        assert "mine" not in ATTENTIONS.names()
    plugin.write_text(whole)
    assert load_plugin(plugin) == ["mine"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("*, size=3", "TypeError: attention 'bad': option 'size' has no type annotation"),
        ("**options", "TypeError: attention 'bad': *args and **kwargs would accept misspelt options"),
        ("*, size: 'Sise' = 3", "NameError: name 'Sise' is not defined"),
    ],
)
def test_that_is_refused_does_not_hide_the_others(options: str, reason: str, plugin: Path) -> None:
    bad = f'@register("bad")\nclass Bad(Attention):\n    def __init__(self, slot, {options}): super().__init__(slot)\n'
    text = plugin.read_text()
    first = text.index("@register")
    plugin.write_text(f"{text[:first]}{bad}\n\n{text[first:]}")
    line = 1 + plugin.read_text().splitlines().index('@register("bad")')
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            load_plugin(plugin)
        assert str(caught.value) == f"{plugin}:{line}: {reason}"
        assert not {"bad", "mine"} & set(ATTENTIONS.names())
    names, (refused,) = load_accepted(plugin)
    assert names == ["mine"]
    assert str(refused) == f"{plugin}:{line}: {reason}"
    assert "bad" not in ATTENTIONS.names()
