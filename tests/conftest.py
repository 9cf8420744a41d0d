"""What all tests share: one thread, and a loud reason where the machine lacks something."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of generated images that lives as long as the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="NOT TESTED HERE: needs a CUDA GPU"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadscope` keeps together what shares a build: the emulated CUDA kernels, a file that makes its own.

    Every other test goes to whichever process is free, however long the rest of its file is. (xdist's loadgroup, made
    for this, no longer groups with pytest 9.2: pytest-dev/pytest-xdist#1386.)
    """
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class BySharedBuild(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if "[emulated" in nodeid or "the_emulation" in nodeid:
                return "emulated"
            file = nodeid.partition("::")[0]
            return file if builds(config.rootpath / file) else nodeid

    return BySharedBuild(config, log)


@functools.cache
def builds(file: Path) -> bool:
    """Whether the tests of a file share a fixture."""
    return 'scope="module"' in file.read_text()
