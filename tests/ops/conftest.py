"""Fixtures: instruction sets, thread counts, and the CUDA operators, on a GPU or compiled for the CPU."""

from collections.abc import Iterator

import pytest
import torch
from support.emulation import CudaOperators, Emulation, compile_library
from support.simd import LEVELS, force

from attnzoo.ops import library


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    force(request.param, monkeypatch)
    return request.param


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Emulation:
    return Emulation(compile_library(tmp_path_factory.mktemp("emulated")))


@pytest.fixture(params=[pytest.param("emulated", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.cuda)])
def cuda_operators(request: pytest.FixtureRequest) -> CudaOperators:
    if request.param == "emulated":
        emulated: Emulation = request.getfixturevalue("emulation")
        return CudaOperators(emulated.ops, "cpu", emulated.shuffle)
    assert library.has_kernel("cuda"), "there is a GPU, but the library has no CUDA kernels"
    return CudaOperators(torch.ops.attnzoo, "cuda", lambda seed: None)
