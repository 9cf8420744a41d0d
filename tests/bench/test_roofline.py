"""The roofline: measured peak rates and minimum traffic."""

import torch

from attnzoo.bench import roofline
from attnzoo.bench.operators.ms_deform_attn import MS_DEFORM_ATTN

CPU = torch.device("cpu")


def test_measured_peak_rates(monkeypatch):
    monkeypatch.setitem(roofline.COPY_BYTES, "cpu", 2**22)
    monkeypatch.setitem(roofline.MATMUL_SIZE, "cpu", 128)
    peak_rates = roofline.measure_peak_rates([MS_DEFORM_ATTN], [torch.bfloat16, torch.float32], CPU)
    assert len(peak_rates.copy) == roofline.SAMPLES
    assert list(peak_rates.macs) == ["float32"]  # half precision is computed in float32


def test_roofline_seconds_by_hand():
    peak_rates = roofline.PeakRates(copy=[1e9, 2e9], macs={"float32": [5e9, 4e9]})
    assert roofline.roofline_seconds(MS_DEFORM_ATTN, 1e10, 1e9, torch.float16, peak_rates) == 2  # compute-bound
    assert roofline.roofline_seconds(MS_DEFORM_ATTN, 1e9, 4e9, torch.float32, peak_rates) == 2  # memory-bound


def test_min_bytes_by_hand():
    tensors = (torch.zeros(10), torch.zeros(3, dtype=torch.float16))
    assert roofline.min_bytes(tensors, torch.zeros(5), backward=False) == 46 + 20
    assert roofline.min_bytes(tensors, torch.zeros(5), backward=True) == 66 + 46 + 20 + 46
