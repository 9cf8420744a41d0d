"""All operations under test, with every implementation entered."""

from attnzoo.bench.operators import deform_kv_attn_peers, peers  # noqa: F401  enter the implementations
from attnzoo.bench.operators.base import Operation
from attnzoo.bench.operators.deform_kv_attn import DEFORM_KV_ATTENTION, DEFORM_KV_ATTENTION_MLP
from attnzoo.bench.operators.ms_deform_attn import MS_DEFORM_ATTN
from attnzoo.bench.operators.ms_deform_attn_fused import MS_DEFORM_ATTN_FUSED

OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (MS_DEFORM_ATTN, MS_DEFORM_ATTN_FUSED, DEFORM_KV_ATTENTION, DEFORM_KV_ATTENTION_MLP)
}
