"""`bench ops --base`: a commit beside the working tree, in a small repository of their own."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from attnzoo import __main__ as attnzoo_main
from attnzoo.bench import builds
from attnzoo.bench.operators import revisions
from attnzoo.environment import csrc_hash

QUICK = ["--operators", "ms_deform_attn", "--cases", "decoder-b1", "--patterns", "local", "--seconds", "0"]
SLOW = """
import time
_fast = ms_deform_attn
def ms_deform_attn(*tensors):
    time.sleep(0.03)
    return _fast(*tensors)
"""
FAILS = "def ms_deform_attn(*tensors): raise RuntimeError('out of order')"
OURS = Path("attnzoo", "ops", "__init__.py")


def bench(*arguments: object) -> int:
    return attnzoo_main.main(["bench", "ops", *map(str, arguments)])


def git(folder: Path, *arguments: str) -> None:
    author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *author, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the sources and the library of this one, in one commit."""
    if not builds.is_built(builds.ROOT):
        pytest.skip("NOT TESTED HERE: needs operators built from csrc/ as it is")
    folder = builds.copy_sources(tmp_path / "repository")
    shutil.copy(builds.ROOT / ".gitignore", folder)
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=first")
    for file in (builds.LIBRARY, builds.BUILD_INFO):
        shutil.copy(builds.ROOT / file, folder / file)
    monkeypatch.setattr(builds, "ROOT", folder)
    return folder


def worktrees(repository: Path) -> list[str]:
    listed = subprocess.run(["git", "-C", repository, "worktree", "list"], capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that printed nothing else."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold", "3"], "--threshold 3: only with --base REV"),
        (["--base", "HEAD", "--threshold", "100"], "--threshold 100: must be from 0 to less than 100"),
        (["--base", "HEAD", "--threshold", "nan"], "--threshold nan: must be from 0"),
        (["--base", "HEAD", "--implementations", "grid_sample"], "--implementations grid_sample: not with --base"),
    ],
)
def test_options_that_do_not_go_together(capsys, arguments, message):
    assert bench(*arguments) == 2
    assert message in error(capsys)


def test_without_git_or_a_checkout(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(builds, "ROOT", tmp_path)
    assert bench("--base", "HEAD") == 2
    assert f"--base HEAD: attnzoo does not run from a git checkout ({tmp_path})" in error(capsys)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bench("--base", "HEAD") == 2
    assert "--base HEAD: git is not installed" in error(capsys)


def test_unknown_revision_and_no_compiler(capsys, monkeypatch, tmp_path, repository):
    raw = tmp_path / "raw.json"
    assert bench("--base", "mian", "--json", raw) == 2
    assert "--base mian: not a commit of this repository; did you mean 'main'?" in error(capsys)
    (repository / "csrc" / "common" / "simd.h").write_text("")
    assert not builds.is_built(repository)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert bench("--base", "HEAD", "--json", raw) == 2
    assert "the operators cannot be built: no C++20 compiler (no-such-compiler): install one" in error(capsys)
    assert not raw.exists()
    assert len(worktrees(repository)) == 1


def test_hash_is_that_of_the_build():
    if not (builds.ROOT / builds.BUILD_INFO).exists():
        pytest.skip("NOT TESTED HERE: needs operators that were built")
    assert json.loads((builds.ROOT / builds.BUILD_INFO).read_text())["csrc"] == csrc_hash(builds.ROOT)


@pytest.mark.slow
def test_slower_and_failing_operators(capsys, tmp_path, repository):
    raw, ours = tmp_path / "raw.json", repository / OURS
    before = ours.read_text()
    ours.write_text(before + SLOW)
    assert bench("--base", "main", *QUICK, "--json", raw) == 1
    out = capsys.readouterr().out
    assert "SLOWER than main: ms_deform_attn decoder-b1 local float32 forward+backward" in out
    record = json.loads(raw.read_text())
    assert [row["pass"] for row in record["rows"]] == ["forward", "forward+backward"]
    for row in record["rows"]:
        assert row["difference"] == 0
        assert min(row["seconds"][revisions.TREE]) > 0.03
        assert len(row["seconds"][revisions.BASE]) == revisions.MIN_ROUNDS
    assert attnzoo_main.main(["bench", "tables", str(raw)]) == 0
    assert "| slower |" in capsys.readouterr().out
    ours.write_text(before + FAILS)
    assert bench("--base", "main", *QUICK) == 1
    assert "FAILED: ms_deform_attn decoder-b1 local float32 forward: working tree: RuntimeError" in (
        capsys.readouterr().out
    )
    assert len(worktrees(repository)) == 1


@pytest.mark.parametrize(
    ("ratios", "threshold", "expected"),
    [
        ([0.8, 0.9, 0.9, 0.9, 1.3], 0.05, revisions.SLOWER),
        ([0.8, 0.9, 0.9, 0.9, 1.3], 0.2, revisions.SAME),
        ([0.8, 0.9, 0.9, 1.1, 1.3], 0.05, revisions.SAME),
        ([0.8, 1.2, 1.2, 1.2, 1.3], 0.05, revisions.FASTER),
    ],
)
def test_verdict_needs_both_quartiles_beyond_the_threshold(ratios, threshold, expected):
    row = {"dtype": "float32", "difference": 1e-6, "seconds": {revisions.BASE: ratios, revisions.TREE: [1.0] * 5}}
    assert revisions.verdict(row, threshold) == expected
    assert revisions.verdict(row | {"difference": 1.0}, threshold) == revisions.DIFFERS
