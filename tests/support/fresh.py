"""Tests that need a fresh process."""

import os
import subprocess
import sys

import pytest

_NODE_ID_VARIABLE = "ATTNZOO_TEST_IN_PROCESS_OF_ITS_OWN"


def passes_in_subprocess(request: pytest.FixtureRequest) -> bool:
    """Run this test in a process of its own, and return True once it has passed; False in that process."""
    if os.environ.get(_NODE_ID_VARIABLE) == request.node.nodeid:
        return False
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", request.node.nodeid],
        cwd=request.config.rootpath,
        env=os.environ | {_NODE_ID_VARIABLE: request.node.nodeid},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed" in run.stdout
    return True
