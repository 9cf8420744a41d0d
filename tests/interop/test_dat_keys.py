"""Published DAT checkpoints: every key is converted and has the expected shape."""

import pytest
import torch
from support.dat_state import DAT, DAT_PLUS, published, published_plus

from attnzoo import interop, models
from attnzoo.errors import UserError
from attnzoo.models.weights import fit

# Number of tensors in the published checkpoints; for DAT++ without index and mask buffers, which depend on natten.
COUNTS = {
    "dat_tiny": 219,
    "dat_small": 435,
    "dat_base": 435,
    "dat_pp_tiny": 589,
    "dat_pp_small": 589,
    "dat_pp_base": 589,
}


@pytest.mark.parametrize("preset", COUNTS)
def test_every_key_is_converted(preset: str) -> None:
    plus = preset in DAT_PLUS
    state = published_plus(DAT_PLUS[preset]) if plus else published(DAT[preset])
    assert len(state) == COUNTS[preset]
    with torch.device("meta"):
        model = models.create(preset)
    result = fit(model, state)
    assert not result.problems
    assert not result.report.missing
    model.load_state_dict(result.values, assign=True)
    block = model.trunk.stages[2].blocks[1]
    assert torch.equal(block.attention.proj_k.weight, state["stages.2.attns.1.proj_k.weight"][:, :, 0, 0])
    assert torch.equal(block.norm2.weight, state["stages.2.layer_norms.3.norm.weight"])
    bias = "stages.2.mlps.1.linear2.0.bias" if plus else "stages.2.mlps.1.chunk.linear2.bias"
    assert torch.equal(block.mlp.fc2.bias, state[bias])
    local = model.trunk.stages[2].blocks[0]
    output = "stages.2.attns.0.proj.weight" if plus else "stages.2.attns.0.proj_out.weight"
    assert torch.equal(local.attention.proj.weight, state[output])
    if plus:
        assert torch.equal(local.local.conv.weight, state["stages.2.local_perception_units.0.weight"])
        assert torch.equal(local.mlp.conv.conv.bias, state["stages.2.mlps.0.dwc.bias"])


def test_unexpected_key_raises() -> None:
    with torch.device("meta"):
        model = models.create("dat_tiny")
    with pytest.raises(UserError, match=r"1 unexpected key, such as 'aux_head\.weight'"):
        interop.load(model, {**published(DAT["dat_tiny"]), "aux_head.weight": torch.zeros(1)})
