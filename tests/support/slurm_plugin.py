"""An attention for fault injection: multi-scale deformable, slowed down or failing as set by environment variables.

ATTNZOO_TEST_SLEEP: seconds that each training call of the encoder sleeps, so that training is slow without load and a
fault hits it in the middle of a step. ATTNZOO_TEST_RAISE=RANK:CALL: that call of that process raises.
ATTNZOO_TEST_KILL=CALL: that call kills its process.
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
    """The same results as its parent."""

    calls = 0

    def forward(self, queries, memory):
        if self.training:
            time.sleep(float(os.environ.get("ATTNZOO_TEST_SLEEP", "0")))
            SlowAttention.calls += 1
            if SlowAttention.calls == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            if SlowAttention.calls == CALL and int(os.environ.get("SLURM_PROCID", "0")) == RANK:
                raise RuntimeError(f"injected failure in process {RANK}")
        return super().forward(queries, memory)
