"""The command that the launchers start a run with."""

import subprocess

from attnzoo.errors import ExitCode
from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep.local import command


def test_worker_command_is_valid(tmp_path):
    """Without a config it fails with an error message."""
    ended = subprocess.run(command(RunFolder(tmp_path), 1), capture_output=True, text=True, timeout=120)
    assert ended.returncode == ExitCode.USER_ERROR
    assert "config.yaml" in ended.stderr
