"""What tests of `attnzoo check` share: a correct attention as text, and its output by clause."""

import pytest

from attnzoo import __main__ as attnzoo_main

# A constant added to the scores of a query cancels in the softmax: the gradient of key.bias is zero.
SOURCE = '''"""An attention of one head."""

import torch
from torch import nn

from attnzoo.attention.base import Attention, num_queries, register
from attnzoo.errors import UserError
from attnzoo.geometry import Role


@register("mine")
class Mine(Attention):
    roles = frozenset({Role.DECODER})

    def __init__(self, slot, *, scale: float = 1.0):
        super().__init__(slot)
        if scale < 0:
            raise UserError(f"scale = {scale}: must not be negative")
        self.scale = scale
        self.query, self.key, self.value, self.out = (nn.Linear(slot.dim, slot.dim) for _ in range(4))

    def forward(self, queries, memory):
        tokens = queries.with_pos_embed()
        values = self.value(memory.tokens)
        scores = self.scale * self.query(tokens) @ self.key(memory.with_pos_embed()).transpose(1, 2)
        if memory.layout.padding_mask is not None:
            scores = scores.masked_fill(memory.layout.padding_mask[:, None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        if self.recording:
            self.record(weights=weights[:, None])
        return self.out(weights @ values)

    def flops(self, queries, memory):
        num, dim = num_queries(queries), self.slot.dim
        return 2 * (num + memory.num_tokens) * dim**2 + 2 * num * memory.num_tokens * dim
'''
REFUSED = '@register("bad")\nclass Bad(Attention):\n    def __init__(self, slot, *, size=3): super().__init__(slot)\n'


def check(*words: object) -> int:
    return attnzoo_main.main(["check", *map(str, words)])


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return out.splitlines()


def failing(printed: list[str]) -> dict[str, str]:
    """Clause -> reason of the lines that say FAIL."""
    return {line.split()[0]: line.partition("FAIL")[2].lstrip(": ") for line in printed if "FAIL" in line}
