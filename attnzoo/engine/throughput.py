"""How fast a run trains, and what memory it takes at most: said in its metrics, never part of its results."""

import resource
import time

import torch

MIB = 2**20


class ThroughputMeter:
    """Counts the images of the steps since the last reading; the clock runs while steps do."""

    def __init__(self, device: torch.device):
        self.device = device
        self._images, self._seconds = 0, 0.0

    def update(self, images: int, since: float) -> None:
        """One step of `images` is done that started at `since` (time.monotonic)."""
        self._images += images
        self._seconds += time.monotonic() - since

    def compute(self) -> dict[str, float]:
        """Images per second since the last reading, and the peak memory of this process so far in MiB."""
        rate = self._images / self._seconds if self._seconds else 0.0
        self._images, self._seconds = 0, 0.0
        return {"speed/images_per_second": rate, "speed/peak_mib": peak_mib(self.device)}


def peak_mib(device: torch.device) -> float:
    """The most memory in MiB that tensors took on a GPU, or that the process took on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
