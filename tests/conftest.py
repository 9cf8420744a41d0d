"""Fixtures and settings of all tests: one thread, a temporary cache, skipped GPU tests, scheduling."""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of generated images for this session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unregister the attentions and unload the plugin modules (`my_*`) of a test when it ends."""
    from attnzoo.attention import ATTENTIONS

    monkeypatch.setattr(ATTENTIONS, "_constructors", dict(ATTENTIONS._constructors))
    loaded = set(sys.modules)
    yield
    for name in set(sys.modules) - loaded:
        if name.startswith(("attnzoo_plugin_", "my_")):
            del sys.modules[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="NOT TESTED HERE: needs a CUDA GPU"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadscope` runs tests that share a build in one process: the emulated CUDA kernels, and some files.

    Every other test goes to any free process. (xdist's loadgroup does not group with pytest 9.2:
    pytest-dev/pytest-xdist#1386.)
    """
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class SharedBuildScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if "[emulated" in nodeid or "test_emulation" in nodeid:
                return "emulated"
            file = nodeid.partition("::")[0]
            return file if has_module_fixture(config.rootpath / file) else nodeid

    return SharedBuildScheduling(config, log)


@functools.cache
def has_module_fixture(file: Path) -> bool:
    """Whether the tests of a file share a fixture, such as a build."""
    return 'scope="module"' in file.read_text()
