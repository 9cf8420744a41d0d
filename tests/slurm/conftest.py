"""One cluster for all tests. Without SLURM they are skipped, or fail with ATTNZOO_REQUIRE_SLURM."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.slurm import STEP_SECONDS, Cluster, Sweep, program, reference, require


@pytest.fixture(scope="session")
def cluster(cache) -> Iterator[Cluster]:
    require(program.REQUIRED_PROGRAMS)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a short path: it holds Unix sockets
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNZOO_TEST_SLEEP", str(STEP_SECONDS))
        with Cluster(folder / "c").up() as started:
            yield started
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def sweep(cluster, tmp_path, monkeypatch) -> Sweep:
    monkeypatch.chdir(tmp_path)
    return Sweep(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(cluster, tmp_path_factory) -> list[dict]:
    """The metrics of the run that the tests disturb, trained without faults."""
    return reference(Sweep(tmp_path_factory.mktemp("undisturbed")))
