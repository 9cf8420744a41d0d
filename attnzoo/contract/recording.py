"""The clause on `record`."""

from torch import nn

from attnzoo.attention import recording
from attnzoo.contract.cases import Case, padding_masks, pyramid
from attnzoo.contract.expect import require, require_close


def record(case: Case) -> None:
    """`record` captures weights without changing the output, and nothing after it exits."""
    attention, memory = case.build(), pyramid(case.maps, masks=padding_masks(case.levels))
    queries = case.queries(memory)
    expected = attention(queries, memory)
    with recording.record(nn.ModuleDict({"block": attention})) as entries:
        for _ in range(2):
            output = attention(queries, memory)
            require_close(output, expected, "inside record() the output differs", atol=1e-5, rtol=1e-5)
    attention(queries, memory)
    require(set(entries) == {"block"}, f"record() has entries for {sorted(entries)}, expected 'block' only")
    num_entries = len(entries["block"])
    require(
        num_entries == 2,
        f"record() has {num_entries} entries after 2 calls: call self.record(weights=…) once, if self.recording",
    )
    required = {
        "weights",
        *(("locations", "reference_points") if case.role in attention.needs_reference_points else ()),
    }
    for entry in entries["block"]:
        missing = required - set(entry)
        require(not missing, f"record() lacks {', '.join(sorted(missing))}: pass them to self.record")
        require((entry["weights"] >= 0).all(), "recorded weights are negative or NaN: record them after the softmax")
        require(not any(t.requires_grad for t in entry.values()), "recorded tensors carry gradients: use self.record")
