"""An attention whose first training call leaves state behind, or ends the process, as its option says."""

import logging
import os
import random
import resource
import signal

import numpy as np
import torch

from attnzoo.attention import register
from attnzoo.attention.deformable import MultiScaleDeformableAttention


@register("leaving")
class LeavingAttention(MultiScaleDeformableAttention):
    """The results of its parent."""

    def __init__(self, slot, *, leave: str = "nothing", points: int = 4):
        super().__init__(slot, points=points)
        self.leave = leave

    def forward(self, queries, memory):
        if self.training:
            act, self.leave = self.leave, "nothing"
            getattr(self, f"_{act}")()
        return super().forward(queries, memory)

    def _nothing(self):
        pass

    def _state(self):
        """Whatever a run could change in its process, after which this run still trains as it does without."""
        random.seed(1)
        np.random.seed(1)
        os.environ["ATTNZOO_LEFT"] = "1"
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        logging.getLogger().addHandler(logging.FileHandler(os.environ["ATTNZOO_TEST_LEFT"]))
        torch.manual_seed(1)
        torch.set_num_threads(2)
        torch.set_default_dtype(torch.float64)
        torch.set_flush_denormal(True)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.mkldnn.enabled = False
        torch.set_autocast_enabled("cpu", True)
        MultiScaleDeformableAttention.forward = None
        raise RuntimeError("after leaving state behind")

    def _sigkill(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def _abort(self):
        os.abort()

    def _exit(self):
        os._exit(7)

    def _memory(self):
        resource.setrlimit(resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
        torch.empty(1 << 32).fill_(1)
