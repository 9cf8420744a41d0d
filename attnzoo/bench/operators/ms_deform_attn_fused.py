"""Multi-scale deformable attention from what a layer predicts: references, raw offsets and attention logits.

Every implementation of the plain operator takes part, with softmax and locations in PyTorch before it.
"""

import torch
from torch import Tensor

from attnzoo.bench.operators import ms_deform_attn
from attnzoo.bench.operators.base import Call, Operation, Peer, differentiate
from attnzoo.bench.operators.ms_deform_attn import MS_DEFORM_ATTN, Case
from attnzoo.bench.operators.peers import BUILD, OURS, require_compiled
from attnzoo.ops.ms_deform_attn import reference


def inputs(case: Case, pattern: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Value (B, S, M, D), references (B, Q, L, 2), offsets (B, Q, M, L, P, 2) in pixels and logits (B, Q, M, L, P).

    The points are those of the plain operator; references are the middle of a query's points.
    """
    value, locations, weights = ms_deform_attn.inputs(case, pattern, dtype, device)
    references = locations.mean((2, 4))
    offsets = (locations - references[:, :, None, :, None]) * _extent(case, locations)
    return value, references, offsets, weights.log()


def unfused(call: Call, case: Case) -> Call:
    """The plain operator `call` with softmax and locations before it."""

    def fused(value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        locations = references[:, :, None, :, None] + offsets / _extent(case, offsets)
        return call(value, locations, logits.flatten(-2).softmax(-1).view_as(logits))

    return fused


def _extent(case: Case, like: Tensor) -> Tensor:
    return like.new_tensor([(w, h) for h, w in case.shapes])[:, None]


def authority(case: Case, tensors: tuple[Tensor, ...], slope: Tensor) -> list[Tensor]:
    """Output and gradients of the reference in float64, one image at a time to spare memory."""
    plain = unfused(lambda value, *others: reference.ms_deform_attn(value, case.shapes, *others), case)
    images = [
        differentiate(plain, tuple(t[i : i + 1].double() for t in tensors), slope[i : i + 1].double())
        for i in range(case.batch)
    ]
    return [torch.cat(parts) for parts in zip(*images, strict=True)]


MS_DEFORM_ATTN_FUSED = Operation(
    "ms_deform_attn_fused",
    cases=MS_DEFORM_ATTN.cases,
    brief=("decoder-b1", "encoder-512x512-b1"),
    seldom=MS_DEFORM_ATTN.seldom,
    patterns=MS_DEFORM_ATTN.patterns,
    tensors=("value", "references", "offsets", "logits"),
    inputs=inputs,
    output=ms_deform_attn.output,
    authority=authority,
    macs=ms_deform_attn.macs,
)


@MS_DEFORM_ATTN_FUSED.peer(OURS, install=BUILD, package="attnzoo")
def _attnzoo(case: Case, device: torch.device) -> Call:
    """The compiled fused operator of this package, with its own argument order."""
    from attnzoo.ops import ms_deform_attn_fused

    require_compiled(device, "ms_deform_attn_fused")
    return lambda value, *others: ms_deform_attn_fused(value, case.shapes, *others)


def _enter_unfused(peer: Peer) -> None:
    name = f"{OURS}-unfused" if peer.name == OURS else peer.name
    enter = MS_DEFORM_ATTN_FUSED.peer(name, install=peer.install, package=peer.package)
    enter(lambda case, device: unfused(peer.load(case, device), case))


for _peer in MS_DEFORM_ATTN.peers.values():
    _enter_unfused(_peer)
