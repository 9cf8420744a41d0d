"""A config.yaml that was edited: the checkpoint of another config neither resumes nor is used, and the key is named."""

import json
import shutil
from pathlib import Path

import pytest

from attnzoo.config.record import check_record
from attnzoo.errors import ExitCode, UserError
from attnzoo.inference.settings import read_trained
from attnzoo.rundir.folder import RunFolder
from attnzoo.worker.train import train_run


@pytest.fixture
def finished(uninterrupted: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(uninterrupted.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.fixture
def unfinished(finished: RunFolder) -> RunFolder:
    """Without its status and its last step."""
    finished.status.unlink()
    for path in finished.checkpoints.glob("*-00000020.*.pt"):
        path.unlink()
    return finished


def edit(run: RunFolder, line: str, new: str, keep_hash: bool = False) -> None:
    """Replace the only line that is or begins with `line`."""
    lines = run.config.read_text().splitlines(keepends=True)
    (index,) = [index for index, each in enumerate(lines) if each.startswith(line)]
    lines[index] = new
    run.config.write_text("".join(lines if keep_hash else lines[:1] + lines[2:]))


@pytest.mark.parametrize(
    ("line", "new", "difference"),
    [
        ("    weight_decay:", "    weight_decay: 0.5\n", "train.optimizer.weight_decay = 0.0001, now 0.5"),
        ("  clip:", "  clip: 10.0\n", "train.clip = 0.1, now 10.0"),
        ("seed:", "", "seed = 3, now 0"),
    ],
)
def test_a_checkpoint_does_not_resume_under_another_config(
    unfinished: RunFolder, line: str, new: str, difference: str
) -> None:
    edit(unfinished, line, new)
    before = {path: path.read_bytes() for path in unfinished.checkpoints.iterdir()}
    assert train_run(unfinished.path) == ExitCode.FAILED
    assert difference in unfinished.read_status()["error"]
    assert {path: path.read_bytes() for path in unfinished.checkpoints.iterdir()} == before


def test_keys_that_do_not_affect_results_may_change(unfinished: RunFolder) -> None:
    edit(unfinished, "retries:", "retries: 7\n")
    assert train_run(unfinished.path) == ExitCode.OK


def test_an_edit_that_the_hash_shows_starts_nothing(unfinished: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    edit(unfinished, "retries:", "retries: 7\n", keep_hash=True)
    assert train_run(unfinished.path) == ExitCode.USER_ERROR
    assert "changed since it was written" in capsys.readouterr().err
    assert not unfinished.status.exists()


def test_a_finished_run_under_another_config_is_corrupt(finished: RunFolder) -> None:
    edit(finished, "  clip:", "  clip: 1.0\n")
    with pytest.raises(UserError, match=r"config\.yaml: corrupt, changed since the run started.* config_sha256"):
        finished.read()
    status = json.loads(finished.status.read_text())
    del status["config_sha256"]
    finished.status.write_text(json.dumps(status))
    finished.read()


def test_weights_are_not_used_under_another_config(finished: RunFolder) -> None:
    read_trained(finished.path)
    edit(finished, "    learned_content:", "    learned_content: false\n")
    with pytest.raises(UserError, match=r"decoder\.learned_content = true, now false"):
        read_trained(finished.path)


def test_a_record_that_is_no_config(finished: RunFolder) -> None:
    config = read_trained(finished.path).settings
    for record in ("", "[1]", "{", '{"task": "detection", "modle": 1}'):
        with pytest.raises(UserError, match=r"x\.pt: "):
            check_record(record, Path("x.pt"), config, finished.config)
