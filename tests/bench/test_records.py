"""Benchmark records, and those published in docs/results."""

import sys
from pathlib import Path

import pytest
import torch

from attnzoo.bench import records, tables

PUBLISHED = Path(__file__).parents[2] / "docs" / "results" / "operators"


def test_record_names_the_environment_variables_that_affect_performance(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_max=0")
    monkeypatch.setenv("UNRELATED", "1")
    monkeypatch.setattr(sys, "argv", ["__main__.py", "bench", "ops"])
    record = records.header("ops", torch.device("cpu"), [])
    assert "GLIBC_TUNABLES=glibc.malloc.mmap_max=0 " in tables.typed_command(record)
    assert tables.typed_command(record).endswith("python -m attnzoo bench ops")
    assert "UNRELATED" not in tables.typed_command(record)


@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("*.json")), ids=lambda path: path.stem)
def test_published_tables_match_the_raw_files(path):
    record = records.read(path)
    if record["kind"] in ("ops", "scaling", "models"):
        page = tables.render_page({path: record}, "Operators: tables")
        assert page.partition("\n\n")[2] in (PUBLISHED / "tables.md").read_text()


def test_every_published_raw_file_is_linked():
    page = (PUBLISHED.parent / "operators.md").read_text()
    assert [path.name for path in PUBLISHED.glob("*.json") if f"(operators/{path.name})" not in page] == []


def test_names_of_published_files_have_no_special_characters():
    assert [path.name for path in PUBLISHED.parent.rglob("*") if set(path.name) & set("=,")] == []
