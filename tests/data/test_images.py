"""Image files that cannot be read."""

import os
from pathlib import Path

import pytest

from attnzoo.data.images import check_image
from attnzoo.errors import UserError


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, make) -> None:
    make(tmp_path / "0.png")
    with pytest.raises(UserError, match=r"/0\.png: not a regular file$"):
        check_image(tmp_path / "0.png", 1, 1)
