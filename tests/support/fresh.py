"""Tests that need a process in which nothing ran before."""

import os
import subprocess
import sys

import pytest

_HERE = "ATTNZOO_TEST_IN_PROCESS_OF_ITS_OWN"


def passed_on_its_own(request: pytest.FixtureRequest) -> bool:
    """False in a process that runs this test alone; elsewhere starts one, and returns True once it has passed there."""
    if os.environ.get(_HERE) == request.node.nodeid:
        return False
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", request.node.nodeid],
        cwd=request.config.rootpath,
        env=os.environ | {_HERE: request.node.nodeid},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed" in run.stdout
    return True
