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


def test_plugin_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"plugins: .*gone\.py: cannot be read"):
        create_snapshot(tmp_path, [str(tmp_path / "gone.py")])
