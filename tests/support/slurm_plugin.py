"""An attention for tests of faults: multi-scale deformable, slowed down or made to fail by the environment.

ATTNZOO_TEST_SLEEP is the seconds that each training call of the encoder sleeps: training takes long without load, and
a fault meets it at an unfinished step. ATTNZOO_TEST_RAISE=RANK:CALL lets that call of that process raise, and
ATTNZOO_TEST_KILL=CALL kills each process in that call.
"""

import os
import signal
import time

from attnzoo.attention import register
from attnzoo.attention.deformable import MultiScaleDeformableAttention

RANK, CALL = map(int, os.environ.get("ATTNZOO_TEST_RAISE", "-1:-1").split(":"))
KILL = int(os.environ.get("ATTNZOO_TEST_KILL", "-1"))


@register("slow")
class SlowAttention(MultiScaleDeformableAttention):
    """What it computes is what its parent computes."""

    calls = 0

    def forward(self, queries, memory):
        if self.training:
            time.sleep(float(os.environ.get("ATTNZOO_TEST_SLEEP", "0")))
            SlowAttention.calls += 1
            if SlowAttention.calls == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            if SlowAttention.calls == CALL and int(os.environ.get("SLURM_PROCID", "0")) == RANK:
                raise RuntimeError(f"process {RANK} has had enough")
        return super().forward(queries, memory)
