from pathlib import Path

import pytest
from support.data import coco_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return coco_folder(tmp_path / "coco")
