"""The instruments: sampling, memory, fits, agreement, ceilings."""

import ctypes
import subprocess
import sys
import time
from itertools import pairwise

import pytest
import torch
from support.fresh import passed_on_its_own

from attnzoo.bench import accuracy, memory, records, roofline, tables
from attnzoo.bench.fit import power_law
from attnzoo.bench.operators.ms_deform_attn import MS_DEFORM_ATTN
from attnzoo.bench.timing import interleave, quartiles, ratios

CPU = torch.device("cpu")
MIB = 2**20


def test_every_round_samples_each_call_once_in_an_order_of_its_own():
    log: list[str] = []

    def call(name: str):
        def slow() -> None:  # enough for one call to be a sample
            log.append(name)
            time.sleep(0.003)

        return slow

    samples = interleave({name: call(name) for name in "abc"}, CPU, seconds=0, fewest=20)
    assert {name: len(values) for name, values in samples.items()} == {"a": 20, "b": 20, "c": 20}
    assert all(value > 0 for values in samples.values() for value in values)
    measured = log[6:]  # after two calls of each that do not count
    assert all(sorted(measured[i : i + 3]) == list("abc") for i in range(0, 60, 3))
    followed = {pair for pair in pairwise(measured) if pair[0] != pair[1]}
    assert len(followed) == 6  # nobody always follows the same one


def test_more_rounds_where_there_is_time():
    samples = interleave({"a": lambda: None}, CPU, seconds=0.05)["a"]
    assert 5 < len(samples) <= 50


def test_quick_calls_are_timed_several_at_a_time():
    calls = []
    interleave({"a": lambda: calls.append(0)}, CPU, seconds=0)
    assert len(calls) > 100


def test_spread_and_ratios_by_hand():
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)
    assert ratios([6.0, 1.0], [2.0, 4.0]) == [3.0, 0.25]


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_recovered(exponent):
    sizes = [4096, 8192, 16384, 65536]
    law = power_law(sizes, [3e-6 * size**exponent for size in sizes])
    assert law.exponent == pytest.approx(exponent, abs=1e-12)
    assert law.scale == pytest.approx(3e-6)
    assert law.spread == pytest.approx(0, abs=1e-6)
    noisy = power_law(sizes, [size**exponent * factor for size, factor in zip(sizes, (1, 1.1, 0.9, 1), strict=True)])
    assert noisy.exponent == pytest.approx(exponent, abs=0.15)
    assert noisy.spread > 0.01


def test_no_exponent_from_one_size():
    assert power_law([4096], [1.0]) is None
    assert power_law([4096, 4096], [1.0, 2.0]) is None
    assert power_law([1, 2], [1.0, 2.0]).spread is None


def test_peak_memory_sees_what_a_call_holds_and_forgets_what_was_before():
    kept = torch.ones(10 * MIB)  # there before: not the call's
    first = memory.peak(lambda: torch.ones(16 * MIB).sum(), CPU)
    second = memory.peak(lambda: torch.ones(4 * MIB).sum(), CPU)
    assert first / MIB == pytest.approx(64, abs=1)
    assert second / MIB == pytest.approx(16, abs=1)
    assert kept.sum() == 10 * MIB


def test_peak_memory_sees_allocations_outside_torch():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p

    def call() -> None:
        block = ctypes.c_void_p(libc.malloc(32 * MIB))
        ctypes.memset(block, 1, 32 * MIB)
        libc.free(block)

    assert memory.peak(call, CPU) / MIB == pytest.approx(32, abs=1)


def test_peak_memory_is_the_highest_not_the_sum():
    def call() -> None:
        for _ in range(4):
            torch.ones(6 * MIB)

    assert memory.peak(call, CPU) / MIB == pytest.approx(24, abs=1)


# Whether large blocks come from the heap, before and after its holes are filled.
HOLE = """
import ctypes
from attnzoo.bench import memory
size = 24 * 2**20
libc = ctypes.CDLL(None)
libc.sbrk.argtypes, libc.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_size_t
libc.malloc.argtypes, libc.malloc.restype, libc.free.argtypes = [ctypes.c_size_t], ctypes.c_size_t, [ctypes.c_size_t]
libc.free(libc.malloc(size))  # blocks as large come from the heap from now on
hole, behind = libc.malloc(size), libc.malloc(100_000)
libc.free(hole)
libc.mallopt(memory._M_MMAP_THRESHOLD, memory._LARGE)
def in_heap(size):
    block = libc.malloc(size)
    found = block < libc.sbrk(0)
    libc.free(block)
    return found
print(in_heap(size))
memory._fill_holes(libc)
print(in_heap(size), in_heap(2**20), in_heap(2**17))
"""


def test_holes_in_the_heap_are_filled_before_peak_memory_is_measured():
    """Else a tensor could lie in one, which stays resident, and the next one be mapped beside it: twice the peak."""
    run = subprocess.run([sys.executable, "-c", HOLE], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["True", "False False False"]


# The peak of a call that writes a block, where a thread, which a fork leaves behind, has freed one as large.
LEFT_BEHIND = """
import ctypes
from threading import Event, Thread
import torch
from attnzoo.bench import memory
size = 3 * 2**20
libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype, libc.free.argtypes = [ctypes.c_size_t], ctypes.c_size_t, [ctypes.c_size_t]
libc.free(libc.malloc(2 * size))  # blocks as large come from heaps from now on
def write():
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    return block
def leave():
    libc.free(write())
    left.set()
    Event().wait()
left = Event()
Thread(target=leave, daemon=True).start()
left.wait()
print(memory.peak(lambda: libc.free(write()), torch.device("cpu")))
"""


def test_peak_memory_counts_what_could_lie_in_the_heap_of_another_thread():
    run = subprocess.run([sys.executable, "-c", LEFT_BEHIND], capture_output=True, text=True, check=True)
    assert int(run.stdout) / MIB == pytest.approx(3, abs=0.5)


def test_peak_memory_of_a_backward_pass_holds_what_the_forward_saved(request):
    # Where fake tensors were before, torch has threads for gradients, which forked processes lack: no peak then.
    if passed_on_its_own(request):
        return
    x = torch.ones(10 * MIB, requires_grad=True)

    def call() -> None:
        x.exp().exp().sum().backward()  # two results saved, their gradients come after

    call()
    assert memory.peak(call, CPU) / MIB == pytest.approx(120, abs=5)


def test_peak_memory_is_unknown_where_the_call_fails():
    def call() -> None:
        raise RuntimeError

    assert memory.peak(call, CPU) is None


def test_errors_of_the_right_thing_are_rounding():
    value = torch.randn(3, 4, dtype=torch.float64)
    slope = torch.randn(3, 4, dtype=torch.float64)
    truth = [value.sin(), slope * value.cos()]
    found = accuracy.errors(torch.sin, ["value"], (value,), slope, truth)
    assert list(found) == ["output", "gradient of value"]
    assert accuracy.verdict(found, torch.float64) is None


def test_a_wrong_gradient_is_a_disagreement():
    value = torch.linspace(-1, 1, 12, dtype=torch.float64)
    slope = torch.ones_like(value)

    def detached(x: torch.Tensor) -> torch.Tensor:
        return (x * x.detach()).clone()  # the output is right, its derivative is half

    found = accuracy.errors(detached, ["value"], (value,), slope, [value**2, 2 * value])
    assert found["output"] == 0
    assert accuracy.verdict(found, torch.float64).startswith("gradient of value is off by 5.0e-01")


def test_distances():
    truth = torch.tensor([1.0, -4.0])
    assert accuracy.distance(torch.tensor([1.0, -3.0]), truth) == 0.25
    assert accuracy.distance(torch.tensor([1.0, torch.nan]), truth) == float("inf")
    assert accuracy.distance(torch.zeros(3), truth) == float("inf")
    assert accuracy.distance(torch.zeros(2), torch.zeros(2)) == 0


def test_ceilings_are_measured_and_bound_time(monkeypatch):
    monkeypatch.setitem(roofline.COPIED, "cpu", 2**22)
    monkeypatch.setitem(roofline.SIDE, "cpu", 128)
    limits = roofline.measure([MS_DEFORM_ATTN], [torch.bfloat16, torch.float32], CPU)
    assert len(limits.copy) == roofline.SAMPLES
    assert list(limits.macs) == ["float32"]  # what half-precision samples are multiplied in
    limits = roofline.Ceilings(copy=[1e9, 2e9], macs={"float32": [5e9, 4e9]})
    assert roofline.bound(MS_DEFORM_ATTN, 1e10, 1e9, torch.float16, limits) == 2  # by arithmetic
    assert roofline.bound(MS_DEFORM_ATTN, 1e9, 4e9, torch.float32, limits) == 2  # by traffic


def test_traffic_by_hand():
    tensors = (torch.zeros(10), torch.zeros(3, dtype=torch.float16))
    assert roofline.traffic(tensors, torch.zeros(5), backward=False) == 46 + 20
    assert roofline.traffic(tensors, torch.zeros(5), backward=True) == 66 + 46 + 20 + 46


def test_a_record_tells_what_tuned_the_machine(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_max=0")
    monkeypatch.setenv("UNRELATED", "1")
    monkeypatch.setattr(sys, "argv", ["__main__.py", "bench", "ops"])
    made = records.header("ops", torch.device("cpu"), [])
    assert "GLIBC_TUNABLES=glibc.malloc.mmap_max=0 " in tables.command(made)
    assert tables.command(made).endswith("python -m attnzoo bench ops")
    assert "UNRELATED" not in tables.command(made)
