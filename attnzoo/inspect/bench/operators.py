"""All operations under test, with every implementation entered."""

from attnzoo.inspect.bench import peers  # noqa: F401  enters the implementations
from attnzoo.inspect.bench.msda import MS_DEFORM_ATTN
from attnzoo.inspect.bench.operation import Operation

OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in [MS_DEFORM_ATTN]}
