"""The cache of generated folders."""

from pathlib import Path

import pytest

from attnzoo.data.cache import cached_folder
from attnzoo.errors import UserError


def test_lock_does_not_follow_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a cache that others may write to, a link would empty the file that it leads to."""
    monkeypatch.setenv("ATTNZOO_CACHE", str(tmp_path))
    folder = cached_folder("x", {"a": 1}, lambda partial: (partial / "file").write_text("1"))
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "x" / f"{folder.name}.lock").unlink()
    (tmp_path / "x" / f"{folder.name}.lock").symlink_to(victim)
    (folder / "file").unlink()
    folder.rmdir()
    with pytest.raises(UserError, match="cannot be written"):
        cached_folder("x", {"a": 1}, lambda partial: None)
    assert victim.read_text() == "mine"
