"""PyTorch support of `deform_kv_attn`: checks, schema, autograd, compiler, FLOPs, memory."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.deform_kv_attn import FUNCTIONS, KINDS, REFERENCES, arguments, leaves, with_leaves
from support.ops import DEVICES
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from attnzoo import ops


def registered(kind: str, device: str = "cpu", **sizes: Any) -> tuple[Any, ...]:
    """Arguments of the registered operator, with leaves that require gradients."""
    call = arguments(kind, **sizes)
    tensors = [tensor.to(device).requires_grad_() for tensor in leaves(call)]
    padding = call["key_padding"].to(device)
    if kind == "table":
        tables = torch.cat([table.detach().flatten(1) for table in tensors[5:]], 1).requires_grad_()
        return *tensors[:5], tables, [5, 7, 1, 3], call["key_counts"], padding, 0.4
    return *tensors[:5], tensors[5:], call["key_counts"], padding, 0.4


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("table", "deform_kv_attn"),
        ("table", "deform_kv_attn_in_blocks"),
        ("mlp", "deform_kv_attn_mlp"),
    ],
)
def test_opcheck(kind: str, name: str, dtype: torch.dtype, device: str) -> None:
    args = registered(kind, device, dtype=dtype)
    forward, backward = (getattr(torch.ops.attnzoo, f"{name}{suffix}").default for suffix in ("", "_backward"))
    torch.library.opcheck(forward, args)
    with torch.no_grad():
        output, logsumexp = forward(*args)
    grad = torch.ones_like(output)
    # Without the checks that need double backward, which is not supported.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(backward, (grad, *args, output, logsumexp), test_utils=tests)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["deform_kv_attn", "deform_kv_attn_in_blocks"])
def test_opcheck_in_half_precision(name: str, dtype: torch.dtype, device: str) -> None:
    """Query, key, value and their gradients in half precision, all else in float32."""
    args = registered("table", device, dtype=torch.float32)
    args = (*(t.detach().to(dtype).requires_grad_() for t in args[:3]), *args[3:])
    forward, backward = (getattr(torch.ops.attnzoo, f"{name}{suffix}").default for suffix in ("", "_backward"))
    if (name, device) == ("deform_kv_attn", "cpu"):
        with pytest.raises(RuntimeError, match="deform_kv_attn"):  # the Python API converts to float32
            forward(*args)
        return
    torch.library.opcheck(forward, args)
    with torch.no_grad():
        output, logsumexp = forward(*args)
        wide_output, wide_logsumexp = forward(*(t.float() for t in args[:3]), *args[3:])
    assert torch.equal(output, wide_output.to(dtype))
    assert torch.equal(logsumexp, wide_logsumexp)
    plain, plain_logsumexp = ops.decompositions()[forward](*args)
    assert_close(plain, output)
    assert_close(plain_logsumexp, logsumexp)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(backward, (torch.ones_like(output), *args, output, logsumexp), test_utils=tests)
    gradients = torch.autograd.grad(forward(*args)[0].float().square().sum(), args[:6])
    assert [g.dtype for g in gradients] == [dtype] * 3 + [torch.float32] * 3


class Biased(nn.Module):
    """A small model with one of the operators."""

    def __init__(self, kind: str, heads: int = 4, dim: int = 16):
        super().__init__()
        self.kind, self.heads = kind, heads
        self.proj = nn.Linear(dim, 3 * dim)
        self.table = nn.Parameter(torch.randn(heads, 5, 7))
        self.mlp = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, heads))

    def forward(self, tokens: Tensor, positions: Tensor, padding: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.proj(tokens).chunk(3, -1))
        args = (q, k[:, :, ::2], v[:, :, ::2], positions[:, None], positions[:, None, ::2])
        if self.kind == "table":
            heads = ops.deform_kv_attn(*args, [self.table], key_padding=padding[:, ::2])
        else:
            layers = [(layer.weight, layer.bias) for layer in (self.mlp[0], self.mlp[2])]
            heads = ops.deform_kv_attn_mlp(*args, [layers], key_padding=padding[:, ::2])
        return heads.transpose(1, 2).flatten(2)


def biased_inputs(length: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens, positions = torch.randn(2, length, 16, generator=generator), torch.randn(2, length, 2, generator=generator)
    return tokens, positions, torch.rand(2, length, generator=generator) < 0.2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_compiles_without_a_graph_break(kind: str, dynamic: bool, device: str) -> None:
    torch.manual_seed(0)
    model = Biased(kind).to(device)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (9, 14):
        tokens, positions, padding = (t.to(device) for t in biased_inputs(length))
        results = []
        for function in (model, compiled):
            args = [tokens.clone().requires_grad_(), positions.clone().requires_grad_()]
            output = function(*args, padding)
            used = [p for n, p in model.named_parameters() if (n == "table") == (kind == "table") or "proj" in n]
            results.append((output, *torch.autograd.grad(output.square().sum(), [*args, *used])))
        for actual, expected in zip(*results, strict=True):
            assert_close(actual, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_dynamic_compilation_needs_one_graph(kind: str) -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(Biased(kind), fullgraph=True, dynamic=True, backend=counter)
    for length in (9, 14, 21):
        compiled(*biased_inputs(length))
    assert counter.frame_count == 1


@pytest.mark.parametrize("kind", KINDS)
def test_exports(kind: str) -> None:
    model = Biased(kind).eval()
    length = {1: 2 * torch.export.Dim("half", min=2, max=500)}
    program = torch.export.export(model, biased_inputs(10), dynamic_shapes=(length, length, length))
    assert any("deform_kv_attn" in str(node.target) for node in program.graph.nodes)
    other = biased_inputs(16)
    assert_close(program.module()(*other), model(*other))


@pytest.mark.parametrize("kind", KINDS)
def test_meta_tensors_give_shapes(kind: str) -> None:
    call = arguments(kind, padded=False)
    output = FUNCTIONS[kind](**with_leaves(call, [tensor.to("meta") for tensor in leaves(call)]))
    assert output.shape == call["query"].shape
    assert output.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("kind", KINDS)
def test_flops(kind: str) -> None:
    """2 matrix products per pair and head forward, 5 backward; the layers of an MLP once forward, 3 times backward."""
    call = arguments(kind, batch=2, heads=4, groups=2, queries=7, counts=(6, 3), head_dim=5)
    tensors = [tensor.requires_grad_() for tensor in leaves(call)]
    pairs = 2 * 7 * 9
    mlp = 2 * pairs * 2 * (2 * 6 + 6 * 3 + 3 * 2) if kind == "mlp" else 0
    with FlopCounterMode(display=False) as counter:
        output = FUNCTIONS[kind](**with_leaves(call, tensors))
    assert counter.get_total_flops() == 2 * pairs * 4 * 2 * 5 + mlp
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * pairs * 4 * 5 * 5 + 3 * mlp


@pytest.mark.parametrize("kind", KINDS)
def test_double_backward_raises(kind: str) -> None:
    call = arguments(kind)
    tensors = [tensor.requires_grad_() for tensor in leaves(call)]
    output = FUNCTIONS[kind](**with_leaves(call, tensors))
    (first,) = torch.autograd.grad(output.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="does not support double backward"):
        first.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode_raises_for_every_tensor(kind: str) -> None:
    call = arguments(kind)
    args = leaves(call)
    for index, tensor in enumerate(args):

        def function(moved: Tensor, index: int = index) -> Tensor:
            return FUNCTIONS[kind](**with_leaves(call, [*args[:index], moved, *args[index + 1 :]]))

        with pytest.raises(NotImplementedError, match="does not support forward-mode AD"):
            torch.func.jvp(function, (tensor,), (tensor,))


def test_forward_mode_of_the_registered_operator_raises() -> None:
    query, *others = (t.detach() if isinstance(t, Tensor) else t for t in registered("table"))
    with pytest.raises(NotImplementedError, match="does not support forward-mode AD"):
        torch.func.jvp(lambda q: torch.ops.attnzoo.deform_kv_attn(q, *others)[0], (query,), (query,))


def test_kernels_check_sizes() -> None:
    query, key, value, query_positions, key_positions, tables, shapes, counts, padding, scale = registered("table")
    forward = torch.ops.attnzoo.deform_kv_attn
    for wrong in ([5, 7, 1, 2], [5, 7], [5, 7, 1, 3, 1, 1], [5, 7, -1, -3]):
        with pytest.raises(RuntimeError, match="deform_kv_attn"):
            forward(query, key, value, query_positions, key_positions, tables, wrong, counts, padding, scale)
    with pytest.raises(RuntimeError, match="add up"):
        forward(query, key, value, query_positions, key_positions, tables, shapes, [6, 2], padding, scale)
    with pytest.raises(RuntimeError, match="key_padding"):
        forward(query, key, value, query_positions, key_positions, tables, shapes, counts, padding[:, 1:], scale)
    with pytest.raises(RuntimeError, match="differ in size"):
        forward(query, key[:, :, 1:], value, query_positions, key_positions, tables, shapes, [5, 3], None, scale)


COMMON = [
    ("query", lambda q: q[0], ValueError, "expected (B, H, Nq, D)"),
    ("query", lambda q: q.long(), TypeError, "got torch.int64"),
    ("query", lambda q: q.tolist(), TypeError, "expected a tensor (B, H, Nq, D), got list"),
    ("query", lambda q: q[..., :0], ValueError, "H and D must be at least 1"),
    ("key", lambda k: k[:1], ValueError, "B (axis 0) is 1, expected 2"),
    ("key", lambda k: k.half(), TypeError, "is torch.float16, but query is torch.float32"),
    ("value", lambda v: v[:, :, 1:], ValueError, "Nk (axis 2) is 8, expected 9"),
    ("value", lambda v: v[..., 1:], ValueError, "D (axis 3) is 4, expected 5"),
    ("query_positions", lambda p: p[:, :1], ValueError, "L (axis 1) is 1, expected 2"),
    ("query_positions", lambda p: p[:, :, 1:], ValueError, "Nq (axis 2) is 6, expected 7"),
    ("query_positions", lambda p: p.double(), TypeError, "is torch.float64, expected torch.float32"),
    ("key_positions", lambda p: p[:, :0], ValueError, "G (axis 1) is 0, which does not divide H = 4"),
    ("key_positions", lambda p: p[..., :1], ValueError, "(x, y) (axis 3) is 1, expected 2"),
    ("key_positions", lambda p: p.to("meta"), ValueError, "is on meta, but query is on cpu"),
    ("key_counts", lambda c: None, TypeError, "expected Python ints, one per level, got NoneType"),
    ("key_counts", lambda c: torch.tensor(c), TypeError, "got Tensor"),
    ("key_counts", lambda c: [9], ValueError, "has 1 entries for 2 levels"),
    ("key_counts", lambda c: [6, 2], ValueError, "sum is 8, expected Nk = 9"),
    ("key_counts", lambda c: [10, -1], ValueError, "must not be negative"),
    ("key_counts", lambda c: [6.0, 3], TypeError, "expected Python ints, got 6.0"),
    ("key_padding", lambda p: p.float(), TypeError, "expected a bool tensor (B, Nk), got torch.float32"),
    ("key_padding", lambda p: p[0], ValueError, "expected (B, Nk), got shape (9,)"),
    ("key_padding", lambda p: p[:, 1:], ValueError, "Nk (axis 1) is 8, expected 9"),
    ("key_padding", lambda p: p.to_sparse(), TypeError, "expected a dense tensor, got layout torch.sparse_coo"),
    ("key_padding", lambda p: p.tolist(), TypeError, "expected a bool tensor (B, Nk), got list"),
    ("query", lambda q: q.to_sparse(), TypeError, "expected a dense tensor, got layout torch.sparse_coo"),
    ("key", lambda k: k.to_mkldnn(), TypeError, "expected a dense tensor, got layout torch._mkldnn"),
    ("value", lambda v: v.flatten(1).to_sparse_csr(), TypeError, "got layout torch.sparse_csr"),
    ("value", lambda v: torch.nested.nested_tensor(list(v)), TypeError, "got a nested one"),
    ("key_positions", lambda p: p.to_sparse(), TypeError, "expected a dense tensor, got layout torch.sparse_coo"),
    ("scale", lambda _: "a", TypeError, "expected a Python float, got str"),
    ("scale", lambda _: torch.tensor(0.5), TypeError, "expected a Python float, got Tensor"),
    ("scale", lambda _: True, TypeError, "expected a Python float, got bool"),
    ("scale", lambda _: 1j, TypeError, "expected a Python float, got complex"),
    ("scale", lambda _: math.nan, ValueError, "must be finite, got nan"),
    ("scale", lambda _: -math.inf, ValueError, "must be finite, got -inf"),
    ("scale", lambda _: 10**400, ValueError, "must be finite, got 10000"),
]
TABLES = [
    ("tables", lambda t: t[0], TypeError, "expected a sequence of tensors (H, Th, Tw), got Tensor"),
    ("tables", lambda t: [], ValueError, "at least one level"),
    ("tables", lambda t: [t[0][:1], t[1]], ValueError, "[0]: H (axis 0) is 1, expected 4"),
    ("tables", lambda t: [t[0], t[1][:, :0]], ValueError, "[1]: Th and Tw must be at least 1"),
    ("tables", lambda t: [t[0], t[1][0]], ValueError, "[1]: expected (H, Th, Tw)"),
    ("tables", lambda t: [t[0], t[1].double()], TypeError, "[1]: is torch.float64"),
    ("tables", lambda t: [t[0].to_sparse(), t[1]], TypeError, "[0]: expected a dense tensor"),
]
MLPS = [
    ("mlps", lambda m: m[0][0][0], TypeError, "expected a sequence of layers per level, got Tensor"),
    ("mlps", lambda m: [], ValueError, "at least one level with at least one layer"),
    ("mlps", lambda m: [m[0], m[1][:2]], ValueError, "[1]: has 2 layers, but mlps[0] has 3"),
    ("mlps", lambda m: [m[0][1:], m[1][1:]], ValueError, "[0][0] weight: in (axis 1) is 6, expected 2"),
    ("mlps", lambda m: [m[0][:2], m[1][:2]], ValueError, "[0]: last layer has 3 outputs, expected H / G = 4 / 2"),
    ("mlps", lambda m: [[(w.to_mkldnn(), b) for w, b in m[0]], m[1]], TypeError, "[0][0] weight: expected a dense"),
    ("mlps", lambda m: [[(w, b[1:]) for w, b in m[0]], m[1]], ValueError, "[0][0] bias: out (axis 0) is 5"),
]


@pytest.mark.filterwarnings("ignore:.*(Sparse CSR|nested tensors):UserWarning")
@pytest.mark.parametrize(
    ("kind", "name", "change", "error", "message"),
    [(kind, *wrong) for kind, own in (("table", TABLES), ("mlp", MLPS)) for wrong in (*COMMON, *own)],
)
def test_errors_name_the_argument(
    kind: str, name: str, change: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    call = arguments(kind, dtype=torch.float32)
    with pytest.raises(error) as raised:
        FUNCTIONS[kind](**{**call, name: change(call.get(name))})
    assert str(raised.value).startswith((f"{name}: ", f"{name}["))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
def test_scale_may_be_an_int_zero_or_negative(kind: str) -> None:
    call = arguments(kind)
    for scale in (2, 0, -1.5):
        assert_close(FUNCTIONS[kind](**call, scale=scale), REFERENCES[kind](**call, scale=scale))


WITHOUT_THE_LIBRARY = """
import torch
from attnzoo import ops
from attnzoo.ops.deform_kv_attn import reference
args = [torch.rand(1, 2, n, 4, requires_grad=True) for n in (5, 3, 3)]
args += [torch.rand(1, 1, n, 2, requires_grad=True) for n in (5, 3)]
table = torch.rand(2, 3, 3, requires_grad=True)
for _ in range(2):
    output = ops.deform_kv_attn(*args, [table])
expected = reference.deform_kv_attn(*args, [table])
torch.testing.assert_close(output, expected)
for pair in zip(*(torch.autograd.grad(o.square().sum(), [*args, table]) for o in (output, expected))):
    torch.testing.assert_close(*pair)
"""


def test_without_the_library_blocks_run_with_one_warning(tmp_path: Path) -> None:
    package, source = tmp_path / "attnzoo", Path(ops.__file__).parent
    shutil.copytree(source, package / "ops", ignore=shutil.ignore_patterns("*.so", "_build.json"))
    shutil.copy(source.parent / "__init__.py", package)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", WITHOUT_THE_LIBRARY]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("deform_kv_attn on cpu runs in plain PyTorch: the compiled library is missing") == 1


# Peak memory of a process; small calls first, so that libraries allocate what they keep.
MEASURE = """
import re
from pathlib import Path
import torch
from attnzoo import ops
from attnzoo.ops.deform_kv_attn import reference
torch.set_num_threads(1)
queries, keys = 16384, 512
q = torch.randn(1, 2, queries, 16, requires_grad=True)
k, v = (torch.randn(1, 2, keys, 16, requires_grad=True) for _ in range(2))
at, to = torch.rand(1, 1, queries, 2, requires_grad=True), torch.rand(1, 1, keys, 2, requires_grad=True)
table = torch.randn(2, 9, 9, requires_grad=True)
layers = [(torch.randn(8, 2, requires_grad=True), torch.randn(8)), (torch.randn(2, 8), torch.randn(2))]
def attend(function, bias, queries):
    function(q[:, :, :queries], k, v, at[:, :, :queries], to, [bias]).sum().backward()
    # not ru_maxrss, which includes the memory of the parent process
    print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
attend(ops.deform_kv_attn, table, 64)
attend(ops.deform_kv_attn_mlp, layers, 64)
attend(ops.deform_kv_attn, table, queries)
attend(ops.deform_kv_attn_mlp, layers, queries)
attend(reference.deform_kv_attn, table, queries)
"""


def test_scores_are_never_materialised() -> None:
    """Forward and backward need less than a quarter of the memory of the scores, which the reference materialises."""
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    _, before, *peaks = (int(line) for line in run.stdout.split())
    table, mlp, materialised = (peak - before for peak in peaks)
    scores = 4 * 2 * 16384 * 512
    assert table < scores / 4
    assert mlp < scores / 4
    assert materialised > scores
