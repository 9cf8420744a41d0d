"""`attnzoo check`: each fault of an attention fails its clause, in a line that says how to fix it."""

import re
from pathlib import Path

import pytest
from support.check import SOURCE, check, failing, lines

from attnzoo.contract import report

pytestmark = pytest.mark.usefixtures("skip_compilation")
RETURN = "return self.out(weights @ values)"
ASSIGNMENT = "self.scale = scale"
FAULTS = {
    "ignores queries": (
        "tokens = queries.with_pos_embed()",
        "tokens = torch.ones_like(queries.tokens)",
        "depends_on_queries",
        r"other query tokens change 0% of the outputs: compute queries from `queries`, not from `memory`",
    ),
    "leaks padding": (
        "if memory.layout.padding_mask is not None:",
        "if False:",
        "padding_is_ignored",
        r"other values in padded tokens change valid outputs: .* \(by up to .+\)",
    ),
    "dead parameter": (
        ASSIGNMENT,
        f"{ASSIGNMENT}; self.spare = nn.Linear(3, 3)",
        "gradients",
        "spare.weight is not used: use it in forward, or remove it",
    ),
    "parameter times zero": (
        "self.query(tokens)",
        "nn.functional.linear(tokens, self.query.weight, 0 * self.query.bias)",
        "gradients",
        r"query\.bias: only 0% of the elements have a gradient, and the others do not change the output: use",
    ),
    "unread part of a parameter": (
        "self.query(tokens)",
        "self.query(tokens * (torch.arange(tokens.shape[-1]) < 4))",
        "gradients",
        r"query\.weight: only 25% of the elements have a gradient, and the others do not change the output",
    ),
    "detached parameter": (
        "self.value(memory.tokens)",
        "nn.functional.linear(memory.tokens, self.value.weight, self.value.bias.detach())",
        "gradients",
        r"value\.bias changes the output but gets no gradient: something detaches it",
    ),
    "frozen parameter": (
        ASSIGNMENT,
        f"{ASSIGNMENT}; self.spare = nn.Parameter(torch.ones(3), requires_grad=False)",
        "gradients",
        "spare has requires_grad = False: keep constants with register_buffer",
    ),
    "wrong flops": (
        "2 * num * memory.num_tokens * dim",
        "num * memory.num_tokens * dim",
        "flops",
        r"flops\(\) = \d+ multiply-accumulates for one image, but torch counts \d+ \(addmm \d+, bmm \d+\)",
    ),
    "no flops": ("def flops(", "def cost(", "flops", r"flops\(queries, memory\) is not implemented"),
    "wrong shape": (
        RETURN,
        "return (weights @ values).repeat(1, 1, 2)",
        "shape",
        r"forward returns shape \(2, 5, 32\), expected \(2, 5, 16\): \(B, Q, C\) of the queries",
    ),
    "no tensor": (RETURN, "return weights, values", "shape", r"forward returns a tuple, expected a tensor \(B, Q, C\)"),
    "random": (
        RETURN,
        f"{RETURN} + 0.01 * torch.rand(1)",
        "determinism",
        "in eval mode two calls give different outputs: draw random numbers in training mode only",
    ),
    "ignores an option": (
        "self.scale * self.query(tokens)",
        "self.query(tokens)",
        "options",
        "scale has no effect: other values give the same parameters, output and flops",
    ),
    "options out of range": (
        "if scale < 0:",
        "if scale < 1: raise ZeroDivisionError('no')\n        if scale < 0:",
        "options",
        r"my_attention\.py:17, in __init__: ZeroDivisionError: no \(options: {'scale': 0\.5}: raise UserError",
    ),
    "records nothing": ("self.record(", "dict(", "record", r"record\(\) has 0 entries after 2 calls"),
    "references not needed": (
        "roles = ",
        "needs_reference_points = frozenset({Role.DECODER}); roles = ",
        "reference_points",
        "needs_reference_points has decoder, but it runs without them",
    ),
    "undeclared reference points": (
        "tokens = queries.with_pos_embed()",
        "self.require_reference_points(queries); tokens = queries.with_pos_embed()",
        "reference_points",
        r"Mine needs reference points .*, got None: add decoder to needs_reference_points",
    ),
    "unchecked reference points": (
        "tokens = queries.with_pos_embed()",
        "tokens = queries.with_pos_embed() + queries.reference_points.mean()",
        "reference_points",
        r"my_attention\.py:23, in forward: AttributeError: .* \(queries without reference points: get them with self",
    ),
    "mixes images": (
        RETURN,
        f"{RETURN} + values.mean((0, 1))",
        "batch_independence",
        "an image alone gives another output",
    ),
    "unknown role": (
        "frozenset({Role.DECODER})",
        '"decoders"',
        "interface",
        r"roles = 'decoders': expected a non-empty set of Role, such as frozenset\({Role\.ENCODER}\)",
    ),
    "no slot": ("super().__init__(slot)", "nn.Module.__init__(self)", "interface", r"slot = None: expected a Slot"),
    "constructor without slot": (
        "def __init__(self, slot, *,",
        "def __init__(self, *,",
        "interface",
        r"TypeError: .*takes 1 positional argument.* \(expected: __init__\(self, slot, \*, option=default\)\)",
    ),
    "constructor raises": (
        ASSIGNMENT,
        "self.scale = slot.scale",
        "interface",
        r"my_attention\.py:19, in __init__: AttributeError: 'Slot' object has no attribute 'scale'",
    ),
    "forward raises": (
        "scores.softmax(-1)",
        "scores.softmax(7)",
        "shape",
        r"my_attention\.py:28, in forward: IndexError: Dimension out of range .*got 7",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_fails_its_clause(fault: str, plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after, clause, reason = FAULTS[fault]
    assert before in SOURCE
    plugin.write_text(SOURCE.replace(before, after))
    assert check(plugin) == 1
    printed = lines(capsys)
    failures = failing(printed)
    assert re.match(reason, failures[clause]), failures
    assert f"{len(failures)} of {len(report.CLAUSES)} clauses fail: {', '.join(failures)}" in printed[-1]
    if clause in ("interface", "shape"):
        assert list(failures) == [clause]
        assert "not run" in printed[-2]
        assert f"; fix {clause} first, then check again" in printed[-1]


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("class Mine(Attention):", "class Mine(nn.Module):", "the class Mine"),
        ('@register("mine")', '@register("mine")\ndef mine(slot): return slot\n\n', "function"),
    ],
    ids=["class", "function"],
)
def test_what_is_no_attention_is_an_error_of_the_file(
    before: str, after: str, kind: str, plugin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin.write_text(SOURCE.replace(before, after))
    assert check(plugin) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {plugin}:")
    assert kind in error
    assert "expected a subclass of attnzoo.attention.Attention" in error


def test_failure_names_its_role(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = SOURCE.replace("Role.DECODER", "Role.DECODER, Role.ENCODER")
    plugin.write_text(text.replace("scores.softmax(-1)", "scores.softmax(-1 if self.slot.role == Role.ENCODER else 7)"))
    assert check(plugin) == 1
    printed = lines(capsys)
    assert failing(printed).keys() == {"shape"}
    assert any(re.match(r"  shape +encoder, decoder +FAIL in decoder: my_attention\.py:28", line) for line in printed)
    assert any(re.match(r"  gradients +encoder +pass", line) for line in printed)
