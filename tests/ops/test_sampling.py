"""The forms of bilinear sampling agree, and so do the operators that are decomposed with them."""

import pytest
import torch
from support import deform_kv_attn
from support.ops import arguments, fused_arguments
from torch.utils._python_dispatch import TorchDispatchMode

from attnzoo import ops
from attnzoo.ops.sampling import gather, grid_sample


class Names(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", [(5, 7), (1, 3), (1, 1)])
def test_gathers_sample_as_grid_sample(size):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 4, *size, dtype=torch.float64, generator=generator)
    grid = 3 * torch.rand(3, 6, 5, 2, dtype=torch.float64, generator=generator) - 1.5  # also outside
    grid[0, 0] = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(gather(maps, grid), grid_sample(maps, grid), rtol=0, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True])
def test_deformable_attention_without_grid_sample(fused):
    value, shapes, *others = fused_arguments(True) if fused else arguments()
    others[0][0, 0, 0, 0] = torch.nan
    operator = ops.ms_deform_attn_fused if fused else ops.ms_deform_attn
    name = torch.ops.attnzoo.ms_deform_attn_fused if fused else torch.ops.attnzoo.ms_deform_attn
    with Names() as names:
        flat = [size for shape in shapes for size in shape]
        output = ops.decompositions("gather")[name.default](value, flat, *others)
    torch.testing.assert_close(output, operator(value, shapes, *others), rtol=0, atol=1e-12)
    assert not any("grid_sampler" in name for name in names.seen)


def test_the_bias_of_sampled_keys_without_grid_sample():
    call = deform_kv_attn.arguments("table")
    expected = deform_kv_attn.FUNCTIONS["table"](**call)
    recorded = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in ops.decompositions():
                with Names() as names:
                    recorded.append((ops.decompositions("gather")[func](*args)[0], names.seen))
            return func(*args, **(kwargs or {}))

    with Record():
        deform_kv_attn.FUNCTIONS["table"](**call)
    ((output, names),) = recorded
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    assert not any("grid_sampler" in name for name in names)


def test_another_form_is_an_error():
    with pytest.raises(ValueError, match="sampling: expected one of grid_sample, gather, got 'nearest'"):
        ops.decompositions("nearest")
