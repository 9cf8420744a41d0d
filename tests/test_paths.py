"""Paths that users give, and errors that name what they typed. Nothing here loads torch."""

import re
from pathlib import Path

import pytest

import attnzoo
from attnzoo.__main__ import main
from attnzoo.errors import UserError, as_options, check_type
from attnzoo.paths import output_file, output_folder, user_path

PACKAGE = Path(attnzoo.__file__).parent


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/a.png") == Path("/home/me/a.png")
    assert user_path(Path("~/a.png")) == Path("/home/me/a.png")
    assert user_path("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")  # Path.expanduser raises
    assert user_path("a~b") == Path("a~b")


def test_home_is_expanded_in_one_place() -> None:
    """Options that took `~` as the name of a folder: --convert, --sheet, schema -o, compare --save."""
    sources = {path: path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "paths.py"}
    assert [path for path, text in sources.items() if re.search(r"expanduser|type=Path\b", text)] == []


def test_options_with_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["schema", "-o", "~/new/schema.json"]) == 0
    assert (tmp_path / "new" / "schema.json").is_file()
    assert not (tmp_path / "~").exists()


def test_files_to_write(tmp_path: Path) -> None:
    assert output_file(tmp_path / "a" / "b.PNG", (".png",)) == tmp_path / "a" / "b.PNG"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "nowhere.png").symlink_to("missing/x.png")
    for path, message in (
        (tmp_path, rf"output = {tmp_path}: is a folder; name a file, such as {tmp_path}/NAME\.png"),
        (tmp_path / "a.gif", r"a\.gif: expected a name that ends in \.png or \.svg"),
        (tmp_path / "a", r"a: expected a name that ends in \.png or \.svg"),
        (tmp_path / "file" / "a.png", rf"{tmp_path}/file is not a folder"),
        (tmp_path / "loop.png", r"loop\.png: Too many levels of symbolic links"),
        (tmp_path / "nowhere.png", r"nowhere\.png: is a link that leads nowhere"),
        (tmp_path / f"{'a' * 300}.png", r"aaa\.png: File name too long"),
    ):
        with pytest.raises(UserError, match=message):
            output_file(path, (".png", ".svg"))


def test_folders_to_write(tmp_path: Path) -> None:
    assert output_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("missing")
    for name, message in (
        ("file", "is a file; name a folder"),
        ("file/a", "file is not a folder"),
        ("loop", "Too many levels of symbolic links"),
        ("nowhere", "is a link that leads nowhere"),
        ("a" * 300, "File name too long"),
    ):
        with pytest.raises(UserError, match=message):
            output_folder(tmp_path / name)


def test_errors_of_commands_name_options() -> None:
    with (
        pytest.raises(UserError, match=r"^--threshold 2: expected a number") as error,
        as_options(threshold="--threshold"),
    ):
        raise UserError("threshold = 2: expected a number", key="threshold")
    assert error.value.keys == ("threshold",)
    with pytest.raises(UserError, match=r"^--layer: unknown layer 'x'"), as_options(layer="--layer"):
        raise UserError("layer: unknown layer 'x'", key="layer")
    with pytest.raises(UserError, match=r"^file\.yaml: layer = 3"), as_options(layer="--layer"):
        raise UserError("file.yaml: layer = 3", key="layer")


def test_types() -> None:
    check_type("threshold", 1, (int, float), "a number")
    for value, message in (
        (True, "threshold = True: expected a number, not a bool"),
        ("a", "not a str"),
        ([], "a list"),
    ):
        with pytest.raises(TypeError, match=message):
            check_type("threshold", value, (int, float), "a number")
    with pytest.raises(TypeError, match="path = 3: expected a path, not an int"):
        user_path(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="folders = 3: expected paths of folders, not an int"):
        attnzoo.results(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["x", "nan", "0"])
def test_numbers_of_options(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """argparse said "invalid _fraction value"."""
    for arguments, expected in (
        (["data", "folder", "--val-fraction", text], "a number between 0 and 1"),
        (["compare", "folder", "--margin", text], "a positive number"),
        *([] if text == "0" else [(["compare", "folder", "--target", text], "a number")]),
    ):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 2
        assert f"{arguments[2]}: expected {expected}, got {text}" in capsys.readouterr().err
