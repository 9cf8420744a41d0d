"""A worker that, at an exact moment, is killed, sleeps in a step ("sleep") or receives the named signal."""

import os
import signal
import sys
import time
from functools import partial

import torch

from attnzoo.data.evaluate import CocoEvaluator
from attnzoo.engine.metrics import MetricsLogger
from attnzoo.worker.train import train_run


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def inject_fault(moment: str, count: int) -> None:
    """Kill, sleep or signal the `count`-th time that the process reaches `moment`."""
    remaining = iter(range(count - 1, -1, -1))
    in_a_step = {"step": kill_self, "sleep": partial(time.sleep, 60)}
    in_a_step |= {
        name: partial(os.kill, os.getpid(), signal.Signals[name])
        for name in ("SIGTERM", "SIGUSR2", "SIGHUP", "SIGQUIT")
    }
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup, where workers leave it ignored
    if moment in in_a_step:  # the weights have changed, nothing else
        inner_step = torch.optim.AdamW.step

        def step(self, *arguments):
            inner_step(self, *arguments)
            if next(remaining, None) == 0:
                in_a_step[moment]()

        torch.optim.AdamW.step = step
    elif moment in ("writing", "renaming", "saved"):
        inner_replace = os.replace

        def replace(source, target):
            now = str(target).endswith(".pt") and next(remaining) == 0
            if now and moment == "writing":
                os.truncate(source, os.path.getsize(source) // 2)
            if now and moment != "saved":
                kill_self()
            inner_replace(source, target)
            if now:
                kill_self()

        os.replace = replace
    elif moment == "evaluation":
        inner_add = CocoEvaluator.add

        def add(self, *arguments):
            inner_add(self, *arguments)
            if next(remaining) == 0:
                kill_self()

        CocoEvaluator.add = add
    else:  # while a row of metrics is written
        inner_write = MetricsLogger.write

        def write(self, step, values):
            if next(remaining) == 0:
                self._file.write('{"step": ')
                self._file.flush()
                kill_self()
            return inner_write(self, step, values)

        MetricsLogger.write = write


def main(run: str, moment: str, count: int) -> None:
    """Train the run in `run` in this process, which ends with it."""
    inject_fault(moment, count)
    sys.exit(train_run(run))
