"""Training throughput and peak memory."""

import resource
import time

import torch

MIB = 2**20


class ThroughputMeter:
    """Images per second since the last `compute`, counting only the time in training steps."""

    def __init__(self, device: torch.device):
        self.device = device
        self._images, self._seconds = 0, 0.0

    def update(self, num_images: int, start_time: float) -> None:
        """Count a step of `num_images` that started at `start_time` (time.monotonic)."""
        self._images += num_images
        self._seconds += time.monotonic() - start_time

    def compute(self) -> dict[str, float]:
        """Images per second since the last call, and the peak memory of this process so far in MiB."""
        rate = self._images / self._seconds if self._seconds else 0.0
        self._images, self._seconds = 0, 0.0
        return {"speed/images_per_second": rate, "speed/peak_mib": peak_mib(self.device)}


def peak_mib(device: torch.device) -> float:
    """Peak memory in MiB: of tensors on a GPU, of the process (max RSS) on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
