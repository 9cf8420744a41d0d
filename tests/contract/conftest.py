"""A plugin with a correct attention, and a check without compilation."""

from pathlib import Path

import pytest
from support.check import SOURCE

from attnzoo.contract import CLAUSES, report


@pytest.fixture
def skip_compilation(clean_registry: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Omit the clauses that compile."""
    compiling = ("compile_static", "compile_dynamic", "export")
    monkeypatch.setattr(report, "CLAUSES", {name: CLAUSES[name] for name in CLAUSES if name not in compiling})


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "my_attention.py"
    path.write_text(SOURCE)
    return path
