"""The copy of the code that queued jobs run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnzoo.errors import UserError
from attnzoo.sweep.snapshot import create_snapshot

PLUGIN = Path(__file__).parents[2] / "docs" / "examples" / "low_rank.py"


def test_same_code_gets_the_same_folder(tmp_path: Path) -> None:
    first = create_snapshot(tmp_path, [])
    assert create_snapshot(tmp_path, []) == first
    assert create_snapshot(tmp_path, [str(PLUGIN)]) != first
    assert sorted(json.loads((first / "source.json").read_text())) == ["commit", "diff"]
    assert (first / "attnzoo" / "experiments" / "ablate_points.yaml").is_file()
    assert not list(first.rglob("__pycache__"))


def test_plugin_is_loaded_from_the_snapshot(tmp_path: Path) -> None:
    """In a fresh interpreter whose current folder holds another attnzoo, after the plugin was edited."""
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN.read_text())
    code = create_snapshot(tmp_path / "code", [str(plugin)])
    plugin.write_text("raise SystemExit('edited')\n")
    (tmp_path / "attnzoo").mkdir()
    (tmp_path / "attnzoo" / "__init__.py").write_text("raise SystemExit('not the snapshot')\n")
    program = (
        "import attnzoo; from attnzoo.attention import load_plugin;"
        f"print(attnzoo.__file__, load_plugin({str(plugin)!r}))"
    )
    environment = os.environ | {"PYTHONPATH": f"{code}:{tmp_path}", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, text=True, capture_output=True, check=True
    )
    assert done.stdout == f"{code}/attnzoo/__init__.py ['low_rank']\n"


def test_modules_that_a_plugin_imports_are_in_the_snapshot(tmp_path: Path) -> None:
    """And are imported from there, though the current folder, which holds the edited originals, is on the path."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "my_helper.py").write_text("SCALE = 1.0\n")
    (tmp_path / "parts" / "inner.py").write_text("from my_helper import SCALE\n")
    plugin = tmp_path / "mine.py"
    plugin.write_text(f"from parts.inner import SCALE\n{PLUGIN.read_text()}\nprint(SCALE)\n")
    program = (
        "import sys; from pathlib import Path; from attnzoo.attention import load_plugin, source_hash;"
        "from attnzoo.sweep.snapshot import create_snapshot;"
        "load_plugin(sys.argv[1]); print(source_hash(sys.argv[1]));"
        "len(sys.argv) > 2 and print(create_snapshot(Path(sys.argv[2]), [sys.argv[1]]))"
    )

    def run(*arguments: str, path: str) -> list[str]:
        command = [sys.executable, "-c", program, str(plugin), *arguments]
        environment = os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=True)
        return done.stdout.splitlines()

    scale, source, code = run(str(tmp_path / "code"), path=f"{os.environ.get('PYTHONPATH', '')}:{tmp_path}")
    (tmp_path / "my_helper.py").write_text("SCALE = 3.0\n")
    assert run(path=f"{code}:{tmp_path}") == [scale, source] == ["1.0", source]
    assert run(path=f"{os.environ.get('PYTHONPATH', '')}:{tmp_path}") != [scale, source]


def test_plugin_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"plugins: .*gone\.py: cannot be read"):
        create_snapshot(tmp_path, [str(tmp_path / "gone.py")])
