"""The clause on cost."""

from torch.utils.flop_counter import FlopCounterMode

from attnzoo.attention import Attention
from attnzoo.contract.cases import BATCH, NUM_OBJECTS, Case, pyramid
from attnzoo.contract.expect import require
from attnzoo.geometry import Role


def flops(case: Case) -> None:
    """`flops()` + `extra_flops()` equal the count of FlopCounterMode in a forward pass, two per multiply-accumulate.

    `flops()` is what the algorithm needs, `extra_flops()`, by default 0, what the implementation adds; if negative,
    what it saves.

    It counts matrix products, convolutions, scaled_dot_product_attention, F.grid_sample (one multiply-accumulate for
    each pixel that a sample interpolates: 4 if bilinear) and the operators of `attnzoo.ops`; it does not count
    biases, softmax, normalisation and other elementwise operations. Register a formula for a custom operator with
    torch.utils.flop_counter.register_flop_formula.
    """
    attention, memory = case.build(), pyramid(case.maps)
    require(type(attention).flops is not Attention.flops, "flops(queries, memory) is not implemented")
    queries = case.queries(memory)
    with FlopCounterMode(display=False) as counter:
        attention(queries, memory)
    sizes = (NUM_OBJECTS if case.role == Role.DECODER else memory.layout, memory.layout)
    needed, extra = attention.flops(*sizes), attention.extra_flops(*sizes)
    counted = counter.get_total_flops() / 2 / BATCH
    parts = counter.get_flop_counts().get("Global", {})
    terms = ", ".join(f"{str(op).rpartition('.')[2]} {count / 2 / BATCH:.15g}" for op, count in parts.items())
    expected = f"torch counts {counted:.15g} ({terms or 'nothing'})"
    declared = f"flops() = {needed}" + (f" and extra_flops() = {extra}" if extra else "")
    require(needed + extra == counted, f"{declared} multiply-accumulates for one image, but {expected}")
