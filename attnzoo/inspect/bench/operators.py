"""All operations under test, with every implementation entered."""

from attnzoo.inspect.bench import dat_peers, peers  # noqa: F401  enter the implementations
from attnzoo.inspect.bench.dat import DEFORM_KV_ATTENTION, DEFORM_KV_ATTENTION_MLP
from attnzoo.inspect.bench.msda import MS_DEFORM_ATTN
from attnzoo.inspect.bench.msda_fused import MS_DEFORM_ATTN_FUSED
from attnzoo.inspect.bench.operation import Operation

OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (MS_DEFORM_ATTN, MS_DEFORM_ATTN_FUSED, DEFORM_KV_ATTENTION, DEFORM_KV_ATTENTION_MLP)
}
