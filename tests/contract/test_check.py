"""`attnzoo check`: correct attentions pass, options and files with several attentions, errors in one line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.check import REFUSED, SOURCE, check, failing, lines

from attnzoo.attention import ATTENTIONS, load_plugin
from attnzoo.contract import CLAUSES, Case, Violation, report
from attnzoo.geometry import Role

pytestmark = pytest.mark.usefixtures("skip_compilation")
DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS / "examples"


@pytest.mark.parametrize(("name", "option"), [("low_rank", "rank=3"), ("shared_offsets", "points=3")])
def test_example_passes_in_every_role(name: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(EXAMPLES / f"{name}.py", option) == 0
    printed = lines(capsys)
    for clause in report.CLAUSES:
        (line,) = [line for line in printed if line.split()[0] == clause]
        assert " pass" in line
        assert "decoder" in line
    assert printed[-1].startswith(f"{name} {option}: all clauses hold in encoder, decoder, stage (")


def test_parameter_with_zero_gradient_that_cancels_passes(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(plugin) == 0
    assert not failing(lines(capsys))


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
        (["nothing.py"], "nothing.py': no such file"),
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
