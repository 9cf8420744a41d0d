"""Times the operators of the attnzoo on the path; `builds.Worker` starts this file as a program.

Each line of standard input is a request as JSON, and is answered by one line. This file may import only what earlier
commits have too.
"""

import json
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MIN_SAMPLE_SECONDS = 2e-3  # shorter calls are repeated within a sample


class Measured:
    """An operator on the tensors of one measurement."""

    def __init__(self, request: dict[str, Any]):
        from attnzoo.bench.operators import benchmark
        from attnzoo.bench.operators.base import OURS

        operator = benchmark.OPERATORS.get(request["operator"])
        case = operator.cases.get(request["case"]) if operator else None
        if operator is None or case is None or str(case) != request["sizes"]:
            raise LookupError("does not have this case")
        inputs = torch.load(request["inputs"], weights_only=True)
        self._tensors, self._grad_output = inputs["tensors"], inputs["grad_output"]
        self._fn = operator.implementations[OURS].factory(case, torch.device("cpu"))
        torch.save(self._forward_backward(), request["outputs"])

    def time(self, backward: bool, repeats: int) -> float:
        """Mean seconds per call over `repeats` calls.

        One call more comes first: OpenMP threads of the process that ran before spin for a while and may take its
        cores.
        """
        call: Callable[[], object] = self._forward_backward if backward else self._forward
        call()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    def _forward(self) -> Tensor:
        with torch.no_grad():
            output: Tensor = self._fn(*self._tensors)
        return output

    def _forward_backward(self) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in self._tensors]
        output = self._fn(*leaves)
        return [output.detach(), *torch.autograd.grad(output, leaves, self._grad_output)]


def main() -> None:
    """Requests: `threads`; the keys of a measurement, which is prepared; `backward` and `repeats`, which times it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    measured = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if "threads" in request:
                torch.set_num_threads(request["threads"])
            elif "operator" in request:
                measured = Measured(request)
            else:
                assert measured is not None
                answer["seconds"] = measured.time(request["backward"], request["repeats"])
        except LookupError as error:
            answer["error"] = str(error)
        except Exception as error:  # of another commit: anything
            answer["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
