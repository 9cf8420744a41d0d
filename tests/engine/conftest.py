"""The run that interrupted ones are compared with."""

import pytest
from support_engine import tiny_run

from attnzoo.engine import worker
from attnzoo.rundir import RunDir


@pytest.fixture(scope="session")
def whole(cache, tmp_path_factory) -> RunDir:
    """The tiny run, trained without interruption."""
    run = tiny_run(tmp_path_factory.mktemp("whole") / "run")
    assert worker.main(run.path) == worker.DONE
    return run
