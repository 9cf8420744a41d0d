"""Damage to the files of a run."""

from pathlib import Path


def corrupt(path: Path, how: str) -> None:
    """`how`: emptied, cut, cut at a line end, deleted, or with a torn line in its middle."""
    if how == "deleted":
        path.unlink()
        return
    content = path.read_bytes()
    half = len(content) // 2
    changed = {
        "emptied": b"",
        "cut": content[:half].rstrip(b"\n"),
        "cut at a line end": content[: content.rindex(b"\n", 0, half) + 1] if b"\n" in content[:half] else b"",
        "torn": content.replace(b"\n", b'\n{"step": 1, "tra\n', 1),
    }
    path.write_bytes(changed[how])
