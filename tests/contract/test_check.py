"""`attnzoo check`: correct attentions pass; each fault fails its clause, in a line that says how to fix it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from attnzoo import __main__ as attnzoo_main
from attnzoo.attention import ATTENTIONS, load_plugin
from attnzoo.contract import CLAUSES, Case, Violation, report
from attnzoo.geometry import Role

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "examples" / "low_rank.py"
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


@pytest.fixture(autouse=True)
def skip_compilation(clean_registry: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Omit the clauses that compile."""
    compiling = ("compile_static", "compile_dynamic", "export")
    monkeypatch.setattr(report, "CLAUSES", {name: CLAUSES[name] for name in CLAUSES if name not in compiling})


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "my_attention.py"
    path.write_text(SOURCE)
    return path


def check(*words: object) -> int:
    return attnzoo_main.main(["check", *map(str, words)])


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return out.splitlines()


def failing(printed: list[str]) -> dict[str, str]:
    """Clause -> reason of the lines that say FAIL."""
    return {line.split()[0]: line.partition("FAIL")[2].lstrip(": ") for line in printed if "FAIL" in line}


def test_example_passes_in_every_role(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(EXAMPLE, "rank=3") == 0
    printed = lines(capsys)
    for clause in report.CLAUSES:
        (line,) = [line for line in printed if line.split()[0] == clause]
        assert " pass" in line
        assert "decoder" in line
    assert printed[-1].startswith("low_rank rank=3: all clauses hold in encoder, decoder, stage (")


def test_parameter_with_zero_gradient_that_cancels_passes(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(plugin) == 0
    assert not failing(lines(capsys))


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


def test_verbose_prints_tracebacks(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin.write_text(SOURCE.replace("scores.softmax(-1)", "scores.softmax(7)"))
    assert check(plugin, "--verbose") == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().out


def test_file_with_several_attentions(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin.write_text(f'{SOURCE}\n\n@register("other")\nclass Other(Mine):\n    pass\n')
    assert check(plugin) == 0
    assert [line.split(":")[0] for line in lines(capsys) if "all clauses hold" in line] == ["mine", "other"]
    assert check(plugin, "other", "scale=2") == 0
    assert [line.split(":")[0] for line in lines(capsys) if "all clauses hold" in line] == ["other scale=2"]


REFUSED = '@register("bad")\nclass Bad(Attention):\n    def __init__(self, slot, *, size=3): super().__init__(slot)\n'


def test_that_is_refused_fails_and_the_others_are_checked(
    plugin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "CLAUSES", {name: CLAUSES[name] for name in ("interface", "shape")})
    text = plugin.read_text()
    start = text.index("@register")
    plugin.write_text(f"{text[:start]}{REFUSED}\n\n{text[start:]}")
    assert check(plugin) == 1
    printed = lines(capsys)
    line = 1 + text[:start].count("\n")
    assert printed[0] == f"refused: {plugin}:{line}: TypeError: attention 'bad': option 'size' has no type annotation"
    assert printed[-1].startswith("mine: all clauses hold in decoder")


def test_verbose_shows_the_traceback_of_an_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.py").write_text("import no_such_library\n")
    assert check(tmp_path / "broken.py", "--verbose") == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_registered_attention_by_name_or_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "CLAUSES", {name: CLAUSES[name] for name in ("interface", "shape")})
    file = sys.modules[ATTENTIONS.get("dense").__module__].__file__
    for target in ("dense", file):
        assert check(target) == 0
        assert lines(capsys)[-1].startswith("dense: all clauses hold in encoder, decoder, stage")


def test_role_that_rejects_the_options_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "CLAUSES", {name: CLAUSES[name] for name in ("interface", "shape")})
    assert check("dat", "bias=depthwise", "stride=1") == 0
    printed = lines(capsys)
    assert printed[0].startswith("dat: not possible in decoder: bias = 'depthwise'")
    assert printed[-1].startswith("dat bias='depthwise' stride=1: all clauses hold in encoder, stage")


def test_list_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(report, "CLAUSES", {name: CLAUSES[name] for name in ("interface", "shape")})
    assert check("dat", "stride=[2, 1]") == 0
    printed = lines(capsys)
    assert printed[0].startswith("dat: not possible in stage: stride = [2, 1]")
    assert printed[-1].startswith("dat stride=[2, 1]: all clauses hold in encoder, decoder")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.py"], "nothing.py' does not exist"),
        (["empty.py"], "registers no attention"),
        (["broken.py"], "broken.py:1: ModuleNotFoundError: No module named 'no_such_library'"),
        (["typo.py"], "typo.py:1: SyntaxError"),
        (["dence"], "unknown attention 'dence'; did you mean 'dense'?"),
        (["my_attention.py", "scael=2"], "attention 'mine' has no option 'scael'; did you mean 'scale'?"),
        (["my_attention.py", "scale=x"], "scale = 'x': expected float"),
        (["my_attention.py", "scale=-1"], "scale = -1: must not be negative"),
        (["my_attention.py", "scale=[1"], "command line: scale:1: not valid YAML"),
        (["my_attention.py", "=1"], "expected option=value, such as points=8, not '=1'"),
        (["my_attention.py", "mein"], "my_attention.py: unknown attention 'mein'; did you mean 'mine'?"),
        (["my_attention.py", "mine", "mine"], "expected one NAME, got mine, mine"),
        (["dat", "points"], "command line: 'points': expected option=value (options: stride, kernel, groups,"),
        (["dat", "stride"], "command line: 'stride': expected stride=value (options: stride, kernel, groups,"),
        (["my_attention.py", "scale"], "command line: 'scale': expected scale=value (options: scale)"),
        (["refused.py"], "refused.py:4: TypeError: attention 'bad': option 'size' has no type annotation"),
    ],
)
def test_user_errors_are_one_line(
    words: list[str], message: str, plugin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(plugin.parent)
    Path("empty.py").write_text("x = 1\n")
    Path("broken.py").write_text("import no_such_library\n")
    Path("typo.py").write_text("def f(:\n")
    Path("refused.py").write_text(f"from attnzoo.attention import Attention, register\n\n\n{REFUSED}")
    assert check(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


GRID_SAMPLE_EDITS = (
    (
        "return self.out(weights @ values)",
        """at = queries.reference_points[:, :, None, :2] * memory.layout.valid_ratios[:, None, :1] * 2 - 1
        first = memory.level(0)
        maps = first.tokens.transpose(1, 2).unflatten(2, first.layout.spatial_shapes[0])
        sampled = nn.functional.grid_sample(maps, at.to(maps.dtype), align_corners=False)
        return self.out(weights @ values + sampled[..., 0].transpose(1, 2))""",
    ),
    ("2 * num * memory.num_tokens * dim", "2 * num * memory.num_tokens * dim + 4 * num * dim"),
)


def test_flops_count_grid_sample(plugin: Path) -> None:
    text = SOURCE
    for before, after in GRID_SAMPLE_EDITS:
        text = text.replace(before, after)
    plugin.write_text(text)
    load_plugin(plugin)
    CLAUSES["flops"](Case("mine", Role.DECODER))
    plugin.with_name("less.py").write_text(text.replace(" + 4 * num * dim", "").replace('"mine"', '"less"'))
    load_plugin(plugin.with_name("less.py"))
    with pytest.raises(Violation, match="grid_sampler_2d 320"):
        CLAUSES["flops"](Case("less", Role.DECODER))


def test_docs_list_every_clause() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .+ \|$", (DOCS / "adding-an-attention.md").read_text(), re.MULTILINE)
    assert rows == list(CLAUSES)


@pytest.mark.slow
def test_every_clause_runs_without_pytest(plugin: Path) -> None:
    program = f"""
import sys
sys.modules["pytest"] = None
from attnzoo.__main__ import main
sys.exit(main(["check", {str(plugin)!r}]))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(" pass") == len(CLAUSES)
    assert result.stderr == ""
