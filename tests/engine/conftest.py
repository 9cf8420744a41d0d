"""A cache of generated images for the session, and the run that interrupted ones are compared with."""

import pytest
from support_engine import tiny_run

from attnzoo.engine import worker
from attnzoo.rundir import RunDir


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def whole(cache, tmp_path_factory) -> RunDir:
    """The tiny run, trained without interruption."""
    run = tiny_run(tmp_path_factory.mktemp("whole") / "run")
    assert worker.main(run.path) == worker.DONE
    return run
