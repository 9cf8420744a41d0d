"""`attnzoo list`."""

import re

import pytest

from attnzoo import __main__ as attnzoo_main
from attnzoo import attention, catalog, models


def test_list_without_name_prints_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert attnzoo_main.main(["list"]) == 0
    out = capsys.readouterr().out
    assert f"attentions: {', '.join(attention.names())}\n" in out
    assert {"dense", "deform", "ms_deform", "dat"} <= set(attention.names())
    assert "deformable_detr_r50_two_stage" in out
    assert "detection data sets: coco, digit_scenes" in out
    assert "classification data sets: digits, folder, timm" in out
    assert attnzoo_main.main(["list", "--ops"]) == 0
    assert "reference: available" in capsys.readouterr().out


def test_list_describes_one_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert attnzoo_main.main(["list", "ms_deform"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ms_deform (attention)\n  ")
    assert "  paper: Zhu et al., " in out
    assert "  roles: decoder, encoder, stage\n" in out
    assert "    points: int, default 4\n" in out
    assert attnzoo_main.main(["list", "none"]) == 0
    assert "none (detection augmentation)" in (out := capsys.readouterr().out)
    assert "none (classification augmentation)" in out
    assert out.count("options: none") == 2
    assert attnzoo_main.main(["list", "coco"]) == 0
    out = capsys.readouterr().out
    assert "    root: str, required\n" in out
    assert "    labels: 'category_id' | 'contiguous', default category_id\n" in out
    assert attnzoo_main.main(["list", "dat_small"]) == 0
    out = capsys.readouterr().out
    assert "  paper: Xia et al., CVPR 2022\n" in out
    assert "  options that the preset sets; the others have their defaults:\n" in out
    assert "    stage3.depth: 18\n" in out


def test_list_matches_patterns_and_suggests_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert attnzoo_main.main(["list", "dat*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("dat (attention): ")
    assert [line.partition(" ")[0] for line in lines[1:]] == [name for name in models.names() if name.startswith("dat")]
    assert attnzoo_main.main(["list", "dense*"]) == 0
    assert capsys.readouterr().out.startswith("dense (attention)\n")
    assert attnzoo_main.main(["list", "dens"]) == 2
    err = capsys.readouterr().err
    assert err == "error: unknown name 'dens'; did you mean 'dense'? (`python -m attnzoo list` shows all names)\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DAT", "unknown name 'DAT'; did you mean 'dat'?"),
        ("zzzz", "unknown name 'zzzz' ("),
        ("zzz*", "no name matches 'zzz*' ("),
        ("DAT*", "no name matches 'DAT*'; did you mean 'dat*'?"),
    ],
)
def test_name_that_list_does_not_know_is_one_line(capsys: pytest.CaptureFixture[str], name: str, message: str) -> None:
    assert attnzoo_main.main(["list", name]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_every_attention_has_a_summary_and_a_paper() -> None:
    for name in attention.names():
        (entry,) = (entry for entry in catalog.find(name) if entry.kind == "attention")
        assert entry.summary
        assert not re.search(r"[a-z][A-Z]", re.sub("LeCun|ConvNets", "", entry.summary))  # no class names
        assert re.search(r"et al.* (19|20)\d\d", entry.paper)
