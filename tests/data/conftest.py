from pathlib import Path

import pytest
from support_data import coco_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return coco_folder(tmp_path / "coco")
