"""Parameters and FLOPs of a model, in total and by part."""

import re

import torch

from attnzoo.cost.subject import Subject
from attnzoo.errors import UserError, describe
from attnzoo.models.cost import count_modules
from attnzoo.models.inputs import random_inputs
from attnzoo.rundir.costs import ModuleCosts, VariantCosts

CONVENTION = "1 GFLOP = 10⁹ multiply-accumulates, as in the papers' tables"
# What the name of a part is made of, by the path of its modules. The rest of a model is named by its first attribute.
_PARTS = (
    (r"(encoder|decoder)\.\d+\.attention", r"\1 attention"),
    (r"decoder\.\d+\.(self|cross)_attention", r"decoder \1-attention"),
    (r"(encoder|decoder)\.\d+\.ffn", r"\1 FFN"),
    (r"(encoder|decoder)(\.\d+)?(\.\w+_norm)?", r"\1 norms"),
    (r"decoder_norm", "decoder norms"),
    (r"trunk\.patch_embed", "patch embedding"),
    (r"trunk\.stages\.(\d)\.downsample", r"stage \1 downsampling"),
    (r"trunk\.stages\.(\d)\.blocks\.\d+\.attention", r"stage \1 attention"),
    (r"trunk\.stages\.(\d)\.blocks\.\d+\.mlp", r"stage \1 MLP"),
    (r"trunk\.stages\.(\d)\.blocks\.\d+\.local", r"stage \1 local perception"),
    (r"trunk\.stages\.(\d)", r"stage \1 norms"),
    (r"embedding|content|level_embedding", "embedding"),
    (r"norm|head", "head"),
)


def part_of(path: str) -> str:
    """The part of a model to which the module at a dotted path belongs: "decoder FFN" for "decoder.0.ffn.linear1"."""
    for pattern, name in _PARTS:
        if match := re.match(rf"(?:{pattern})(?=\.|$)", path):
            return re.sub(r"(?<=^stage )\d", lambda index: str(int(index[0]) + 1), match.expand(name))
    return path.split(".")[0] or "other"


def count(name: str, subject: Subject) -> VariantCosts:
    """Parameters and FLOPs of one image without padding; nothing is computed: the model is on the meta device.

    Raises UserError if the model cannot be built or run.
    """
    with torch.device("meta"):
        model = subject.build().eval()
        try:
            counted = count_modules(model, *random_inputs(model, 1, subject.size, "meta"), group=part_of)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            reason = describe(error)
            size = " x ".join(map(str, subject.size))
            raise UserError(f"{name}: does not run on images of {size} pixels: {reason}", key="model") from error
    modules = tuple(
        ModuleCosts(part, cost.params, cost.macs / 1e9, cost.extra_macs / 1e9)
        for part, cost in counted.items()
        if cost.params or cost.macs or cost.extra_macs
    )
    return VariantCosts(
        name=name,
        digest=subject.digest,
        size=subject.size,
        batch_size=subject.batch_size,
        params=sum(cost.params for cost in counted.values()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        gflops=sum(cost.macs for cost in counted.values()) / 1e9,
        extra_gflops=sum(cost.extra_macs for cost in counted.values()) / 1e9,
        modules=modules,
    )
