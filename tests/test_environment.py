"""The hash of the sources that affect results, and the version of the code."""

import shutil
from pathlib import Path

import pytest
from test_imports import ALLOWED, imports

import attnzoo
from attnzoo.environment import RESULT_SOURCES, sources_hash, version

PACKAGE = Path(attnzoo.__file__).parent
# What training imports but the results do not depend on: of the config they depend, and it is compared by itself.
OTHERS = {"config", "environment", "errors", "files", "inference", "paths", "rundir", "schema", "streams"}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, which is hashed."""
    copied = tmp_path / "attnzoo"
    shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    monkeypatch.setattr(attnzoo, "__file__", str(copied / "__init__.py"))
    return copied


def edit(path: Path) -> None:
    path.write_text(path.read_text() + "# edited\n")


def test_a_copy_has_the_same_hash(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = sources_hash()
    monkeypatch.undo()
    assert sources_hash() == copied


@pytest.mark.parametrize("name", ["attention/dense.py", "models/detr/config.py", "registry.py", "worker/train.py"])
def test_an_edit_of_what_affects_results_changes_it(package: Path, name: str) -> None:
    before = sources_hash()
    edit(package / name)
    assert sources_hash() != before


@pytest.mark.parametrize("name", ["report/table.py", "sweep/run.py", "bench/cli.py", "ops/_C.abi3.so"])
def test_other_edits_do_not(package: Path, name: str) -> None:
    before = sources_hash()
    (package / name).touch()
    edit(package / name)
    assert sources_hash() == before


def test_the_operators_count_by_the_sources_they_were_compiled_from(package: Path) -> None:
    hashes = set()
    for build in ('{"cuda": "no", "csrc": "1"}', '{"cuda": "no", "csrc": "2"}', '{"cuda": "yes", "csrc": "2"}'):
        (package / "ops" / "_build.json").write_text(build)
        hashes.add(sources_hash())
    assert len(hashes) == 2


def test_all_that_training_imports_is_in_the_hash() -> None:
    found, queue = set[str](), ["worker"]
    while queue:
        name = queue.pop()
        found.add(name)
        paths = [PACKAGE / f"{name}.py", *(PACKAGE / name).rglob("*.py")]
        imported = {part.split(".")[1] for path in paths if path.is_file() for part in imports(path) if "zoo." in part}
        queue += sorted(imported & ALLOWED.keys() - found - OTHERS)
    assert {name.removesuffix(".py") for name in RESULT_SOURCES} == found


def test_version_of_attnzoo_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attnzoo, "__version__", "9.8.7")  # as after a pull, before the next install
    assert version("attnzoo") == "9.8.7"
    assert version("no-such-distribution") is None
