"""The version: set in attnzoo/__init__.py, and the same in CITATION.cff and CHANGELOG.md."""

import re
import tomllib
from pathlib import Path

import yaml
from setuptools.config.pyprojecttoml import read_configuration

import attnzoo

ROOT = Path(__file__).parents[1]


def test_package_version_is_read_from_the_source(monkeypatch):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    monkeypatch.chdir(ROOT)
    assert read_configuration(ROOT / "pyproject.toml")["project"]["version"] == attnzoo.__version__


def test_citation_has_the_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == attnzoo.__version__


def test_changelog_has_the_version_and_its_date():
    releases = re.findall(r"^## \[(.+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert releases[0] == (attnzoo.__version__, str(citation["date-released"]))
