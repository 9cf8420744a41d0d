"""`make results`: every table and figure of docs/results is what its raw files give."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "docs" / "results"
spec = importlib.util.spec_from_file_location("results", ROOT / "tools" / "results.py")
results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results)


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("results")
    return {str(path.relative_to(out)): path for path in results.regenerate(PUBLISHED, out)}


def same_picture(made: Path, kept: Path) -> bool:
    """Of one size, and equal but for how a version of matplotlib draws edges and letters."""
    first, second = (np.asarray(Image.open(path).convert("RGB"), dtype=float) for path in (made, kept))
    return first.shape == second.shape and bool(np.abs(first - second).mean() < 2)


def test_tables_and_figures_are_those_of_the_raw_files(regenerated: dict[str, Path]) -> None:
    differing = []
    for name, path in regenerated.items():
        if path.suffix == ".png":
            same = same_picture(path, PUBLISHED / name)
        else:
            same = path.read_text() == (PUBLISHED / name).read_text()
        differing += [] if same else [name]
    assert differing == [], "run `make results`"


def test_every_table_of_an_experiment_has_its_raw_file(regenerated: dict[str, Path]) -> None:
    tables = {str(path.relative_to(PUBLISHED)) for path in PUBLISHED.glob("*/comparison.*")}
    pictures = {str(path.relative_to(PUBLISHED)) for path in PUBLISHED.rglob("*.png")}
    assert tables | pictures <= set(regenerated)
