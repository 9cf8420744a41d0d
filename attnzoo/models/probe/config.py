"""Options of the model of probes."""

# ruff: noqa: RUF009 — the functions called in defaults return dataclasses.field

from dataclasses import dataclass
from typing import Literal

from attnzoo.models.config import ModelConfig
from attnzoo.schema.fields import COUNT, NamedBlock, Range, named, number


@dataclass
class ProbeConfig(ModelConfig):
    """One attention between a linear embedding of the map and a small head."""

    dim: int = number(64, COUNT)  # channels
    heads: int = number(4, COUNT)  # attention heads
    hidden: int = number(128, COUNT)  # hidden channels of the head
    levels: int = number(1, Range(1, 16))  # feature maps: the map and its averages over 2 x 2, 4 x 4, … pixels
    # decoder: the queries attend to the map; encoder, stage: the tokens of the map are the queries
    role: Literal["decoder", "encoder", "stage"] = "decoder"
    attention: NamedBlock = named("ms_deform")
