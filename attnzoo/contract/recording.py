"""The clause on `record`."""

from torch import nn

from attnzoo.attention import recording
from attnzoo.contract.cases import Case, padding_masks, pyramid
from attnzoo.contract.expect import require, require_close


def record(case: Case) -> None:
    """`record` captures weights without changing the output, and nothing once it is left."""
    attention, memory = case.build(), pyramid(case.maps, masks=padding_masks(case.levels))
    queries = case.queries(memory)
    expected = attention(queries, memory)
    with recording.record(nn.ModuleDict({"block": attention})) as captured:
        for _ in range(2):
            output = attention(queries, memory)
            require_close(output, expected, "inside record() the output differs", atol=1e-5, rtol=1e-5)
    attention(queries, memory)
    require(
        set(captured) == {"block"}, f"record() has entries {sorted(captured)}, expected those of the attention alone"
    )
    found = len(captured["block"])
    require(found == 2, f"record() has {found} entries of 2 calls: call self.record(weights=…) once, if self.recording")
    needed = {"weights", *(("locations", "reference_points") if case.role in attention.needs_reference_points else ())}
    for entry in captured["block"]:
        missing = needed - set(entry)
        require(not missing, f"record() lacks {', '.join(sorted(missing))}: pass them to self.record")
        require((entry["weights"] >= 0).all(), "recorded weights are negative or NaN: record them after the softmax")
        require(not any(t.requires_grad for t in entry.values()), "recorded tensors carry gradients: use self.record")
