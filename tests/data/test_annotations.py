"""Annotation files of unusual encodings, and file names that lead out of the image folder."""

import pytest
from support.data import coco_config, edit

from attnzoo.data.build import build_dataset
from attnzoo.errors import UserError


@pytest.mark.parametrize("name", ["../outside.png", "/tmp/outside.png", "a/../../outside.png"])
def test_images_outside_the_folder_are_reported_or_refused(root, caplog, name):
    edit(root, lambda content: content["images"][1].update(file_name=name))
    with pytest.raises(UserError, match="the image file is missing"):
        build_dataset(coco_config(root), "val")
    assert caplog.text.count("1 image outside the image folder; the first") == 1
    with pytest.raises(UserError, match=r"outside = 'refuse': .*all\.json: 1 image outside the image folder"):
        build_dataset(coco_config(root, outside="refuse"), "val")


def test_byte_order_mark_and_other_encodings(root):
    path = root / "annotations" / "all.json"
    text = path.read_text()
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(build_dataset(coco_config(root), "val")) == 5
    for encoding in ("utf-16", "latin-1"):
        path.write_bytes(text.replace('"bee"', '"é"').encode(encoding))
        with pytest.raises(UserError, match=r"all\.json: not text in UTF-8 \(.* at byte \d+\)"):
            build_dataset(coco_config(root), "val")
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"all\.json: not a readable JSON file"):
        build_dataset(coco_config(root), "val")
