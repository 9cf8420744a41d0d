"""Errors name the invalid argument; without the compiled library the fallback runs with one warning."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ops import arguments
from torch import Tensor

import attnzoo
from attnzoo import ops


def changed(**changes: Callable[[Any], Any]) -> dict[str, Any]:
    """Valid arguments, some of them changed."""
    names = ("value", "spatial_shapes", "sampling_locations", "attention_weights")
    call = dict(zip(names, arguments(dtype=torch.float32), strict=True))
    return {name: changes.get(name, lambda x: x)(argument) for name, argument in call.items()}


def nested(tensor: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(tensor))


WRONG_VALUES = [
    ("value", lambda v: v[0], "expected (B, S, M, D)"),
    ("value", lambda v: v[:, 1:], "S = 48 tokens, but spatial_shapes have 49"),
    ("value", lambda v: v[:, :, :0], "M and D must be at least 1"),
    ("value", lambda v: v[..., :0], "M and D must be at least 1"),
    ("spatial_shapes", lambda s: (), "at least one level"),
    ("spatial_shapes", lambda s: ((0, 7), *s[1:]), "h and w must be at least 1"),
    ("spatial_shapes", lambda s: (*s[:2], (2, -1)), "h and w must be at least 1"),
    ("sampling_locations", lambda x: x[..., 0], "expected (B, Q, M, L, P, 2)"),
    ("sampling_locations", lambda x: x[..., :1], "(x, y) (axis 5) is 1, expected 2"),
    ("sampling_locations", lambda x: x[:1], "B (axis 0) is 1, expected 2"),
    ("sampling_locations", lambda x: x[:, :, :2], "M (axis 2) is 2, expected 3"),
    ("sampling_locations", lambda x: x[:, :, :, :2], "L (axis 3) is 2, expected 3"),
    ("sampling_locations", lambda x: x[:, :, :, :, :0], "P must be at least 1"),
    ("attention_weights", lambda w: w[:1], "B (axis 0) is 1, expected 2"),
    ("attention_weights", lambda w: w[:, :5], "Q (axis 1) is 5, expected 6"),
    ("attention_weights", lambda w: w[:, :, :2], "M (axis 2) is 2, expected 3"),
    ("attention_weights", lambda w: w[:, :, :, :2], "L (axis 3) is 2, expected 3"),
    ("attention_weights", lambda w: w[..., :3], "P (axis 4) is 3, expected 4"),
    ("attention_weights", lambda w: w.flatten(-2), "expected (B, Q, M, L, P)"),
    ("sampling_locations", lambda x: x.to("meta"), "is on meta, but value is on cpu"),
    ("attention_weights", lambda w: w.to("meta"), "is on meta, but value is on cpu"),
]

WRONG_TYPES = [
    ("value", lambda v: v.long(), "got torch.int64"),
    ("value", lambda v: v.tolist(), "expected a tensor (B, S, M, D), got list"),
    ("sampling_locations", lambda x: x.double(), "is torch.float64, expected torch.float32"),
    ("sampling_locations", lambda x: x.half(), "is torch.float16, expected torch.float32"),
    ("attention_weights", lambda w: w.double(), "is torch.float64, expected torch.float32"),
    ("attention_weights", lambda w: w.bool(), "got torch.bool"),
    ("value", lambda v: v.to_sparse(), "expected a dense tensor, got layout torch.sparse_coo"),
    ("attention_weights", lambda w: w.to_sparse(), "expected a dense tensor, got layout torch.sparse_coo"),
    ("value", lambda v: v.flatten(1).to_sparse_csr(), "expected a dense tensor, got layout torch.sparse_csr"),
    ("value", lambda v: v.to_mkldnn(), "expected a dense tensor, got layout torch._mkldnn"),
    ("sampling_locations", nested, "expected a dense tensor, got a nested one"),
    ("spatial_shapes", lambda s: torch.tensor(s), "expected ((h, w), …) of Python ints, got Tensor"),
    ("spatial_shapes", lambda s: (35, 12, 2), "expected (h, w) per level"),
    ("spatial_shapes", lambda s: ((5.0, 7), *s[1:]), "expected Python ints"),
]


@pytest.mark.filterwarnings("ignore:.*(Sparse CSR|nested tensors):UserWarning")
@pytest.mark.parametrize(
    ("name", "change", "message", "kind"),
    [(*wrong, ValueError) for wrong in WRONG_VALUES] + [(*wrong, TypeError) for wrong in WRONG_TYPES],
    ids=[f"{name}: {message}" for name, _, message in WRONG_VALUES + WRONG_TYPES],
)
def test_errors_name_the_argument(name, change, message, kind):
    with pytest.raises(kind) as error:
        ops.ms_deform_attn(**changed(**{name: change}))
    at_fault = "value" if "but spatial_shapes have" in message else name
    assert str(error.value).startswith(f"{at_fault}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:.*(Sparse CSR|nested tensors):UserWarning")
@pytest.mark.parametrize("change", [Tensor.to_sparse, Tensor.to_mkldnn, nested])
def test_non_dense_tensors_are_rejected_under_autocast(change):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"^value: expected a dense tensor"):
        ops.ms_deform_attn(**changed(value=change))


def test_shapes_may_be_lists():
    call = changed()
    listed = changed(spatial_shapes=lambda s: [list(shape) for shape in s])
    assert torch.equal(ops.ms_deform_attn(**call), ops.ms_deform_attn(**listed))


def test_half_precision_value_rejects_double_locations():
    call = changed(value=Tensor.half, sampling_locations=Tensor.double, attention_weights=Tensor.half)
    with pytest.raises(TypeError, match=r"^sampling_locations: .*float16 or torch.bfloat16 or torch.float32"):
        ops.ms_deform_attn(**call)


def test_kernels_check_sizes():
    value, _, locations, weights = arguments()
    forward = torch.ops.attnzoo.ms_deform_attn
    for wrong in ([5, 7, 3, 4, 1], [5, 7, 3, 4], [5, 7, 3, 4, 2, 2], [5, 7, 3, 4, -1, -2]):
        with pytest.raises(RuntimeError, match="ms_deform_attn"):
            forward(value, wrong, locations, weights)
    four, _, two_levels, its_weights = arguments(((1, 2), (1, 2)))
    with pytest.raises(RuntimeError, match="do not add up"):
        forward(four, [2**32, 2**32, 2, 2], two_levels, its_weights)  # h·w is 0 in 64 bits
    with pytest.raises(RuntimeError, match="differ in size"):
        forward(value, [5, 7, 3, 4, 1, 2], locations[:, :5], weights)
    with pytest.raises(RuntimeError, match="grad_output"):
        torch.ops.attnzoo.ms_deform_attn_backward(value[:, :3, 0], value, [5, 7, 3, 4, 1, 2], locations, weights, True)


def test_kernel_errors_name_source_files_relative_to_the_repository():
    value, _, locations, weights = arguments()
    with pytest.raises(RuntimeError, match=r"(^|\s)csrc/ms_deform_attn/\w+\.h:\d+,"):
        torch.ops.attnzoo.ms_deform_attn(value, [5, 7, 3, 4, 1], locations, weights)


def test_without_the_library_the_reference_runs_with_one_warning(tmp_path):
    package = tmp_path / "attnzoo"
    source = Path(attnzoo.__file__).parent
    package.mkdir()
    shutil.copy(source / "__init__.py", package)
    shutil.copytree(source / "ops", package / "ops", ignore=shutil.ignore_patterns("*.so", "_build.json"))
    script = """
import torch
from attnzoo import ops
from attnzoo.ops import reference
value = torch.rand(1, 6, 2, 4, requires_grad=True)
locations = torch.rand(1, 3, 2, 1, 2, 2, requires_grad=True)
weights = torch.rand(1, 3, 2, 1, 2, requires_grad=True)
for _ in range(2):
    output = ops.ms_deform_attn(value, ((2, 3),), locations, weights)
output.square().sum().backward()
expected = reference.ms_deform_attn(value, ((2, 3),), locations, weights)
torch.testing.assert_close(output, expected)
grads = torch.autograd.grad(expected.square().sum(), (value, locations, weights))
for leaf, grad in zip((value, locations, weights), grads):
    torch.testing.assert_close(leaf.grad, grad)
print(ops.backends()["cpu"])
"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("runs the slow reference") == 1
    assert "pip install" in run.stderr
    assert run.stdout.startswith("the compiled library is missing")
